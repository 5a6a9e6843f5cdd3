"""An experiment that is declared nowhere, as the data show it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from infnet.errors import DataError
from infnet.experiments.spec import Experiment, Variant

__all__ = ["observed_experiment"]


def observed_experiment(source: Path, name: str, variants: Iterable[str], control: str | None) -> Experiment:
    """The experiment with these variants, in equal shares.

    Args:
        source: Where they were found, for messages.
        name: Of the experiment.
        variants: Names that were found.
        control: Name of the control; ``control`` by default.

    Raises:
        DataError: The control is not among them, or there is nothing to compare it with.
    """
    found, wanted = sorted(set(variants)), control or "control"
    if wanted not in found:
        raise DataError(
            f"{source}: '{name}' has the variants {', '.join(found)}, none of them '{wanted}'; name one as --control"
        )
    if len(found) < 2:
        raise DataError(f"{source}: '{name}' has no variant but '{wanted}'; wanted another to compare with")
    try:
        return Experiment(name=name, variants=tuple(Variant(name=v) for v in found), control=wanted)
    except ValidationError as error:
        bad = error.errors()[0]["input"]
        raise DataError(
            f"{source}: experiment '{name}' has the name or variant {bad!r}; wanted letters, digits, '_', '.' and '-'"
        ) from error
