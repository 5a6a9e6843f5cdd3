"""A policy's inputs, for whoever reads them: names and formulas are checked where they are declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infnet.errors import SpecError, did_you_mean
from infnet.ranking.formula import Formula
from infnet.ranking.interval import Interval

__all__ = ["Inputs"]


def _dotted(*loc: int | str) -> str:
    return ".".join(str(part) for part in loc)


class Inputs:
    """What formulas may read.

    Args:
        ranges: By name what an input can come to.
        place: Says where a part of the policy was declared, for messages.
    """

    def __init__(self, ranges: Mapping[str, Interval], place: Callable[..., str] = _dotted) -> None:
        self._ranges, self._place = ranges, place

    def range(self, name: str, *loc: int | str) -> Interval:
        """Of an input that is read somewhere.

        Raises:
            SpecError: There is none of this name.
        """
        if name not in self._ranges:
            known = did_you_mean(name, self._ranges)
            raise self.error(f"'{name}' is neither a prediction nor declared under 'inputs'{known}", *loc)
        return self._ranges[name]

    def formula(self, text: str, *loc: int | str) -> tuple[Formula, Interval]:
        """A formula that is declared somewhere, and what it can come to.

        Raises:
            SpecError: It is none, reads an unknown name, or may have no finite value.
        """
        formula = Formula(text, self._place(*loc))
        for name in sorted(formula.names):
            self.range(name, *loc)
        return formula, formula.bound(self._ranges)

    def error(self, what: str, *loc: int | str) -> SpecError:
        """A complaint about what is declared somewhere."""
        return SpecError(f"{self._place(*loc)}: {what}")
