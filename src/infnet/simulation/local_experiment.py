"""An experiment on this machine: variants made ready, a service that answers for all of them, models updated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from infnet.errors import SpecError
from infnet.simulation.local_service import LocalService
from infnet.simulation.variants import ReadyExperiment, Wanted

__all__ = ["LocalExperiment"]


class LocalExperiment:
    """A context manager, with a service that is ready when it is entered.

    Args:
        wanted: What is compared.
        out: Directory of the event log; the rest goes to ``simulation`` in it.
        start_ms: When the experiment starts, since 1970.
        model: Bundle of variants that are policies.
        policy: Policy of variants that are none.
        on_stage: Told what is done.

    Attributes:
        url: Where the service answers.
        updates: What each update said, the first one first.

    Raises:
        SpecError: All variants are policies, and there is no model.
        InfnetError: A variant cannot be made ready, or the service does not start.
    """

    def __init__(
        self,
        wanted: Wanted,
        out: Path,
        start_ms: int,
        *,
        model: Path | None = None,
        policy: Path | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> None:
        if model is None and not wanted.has_models:
            raise SpecError(f"--experiment {wanted.name}: its variants are policies; give the --model that scores")
        self._on_stage, self.updates = on_stage, list[dict[str, Any]]()
        self._ready = ReadyExperiment.make(wanted, out / "simulation", start_ms, on_stage)
        options = ["--experiments", str(self._ready.file), *(() if policy is None else ("--policy", str(policy)))]
        own = next(iter(self._ready.models.values())) if model is None else model
        self._service = LocalService(own, out, out / "simulation", options)

    @property
    def url(self) -> str:
        """Of the service."""
        return self._service.url

    def __enter__(self) -> LocalExperiment:
        self._on_stage("start the service")
        self._service.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._service.__exit__(kind, error, at)

    def update(self, as_of_ms: int) -> None:
        """Go on training every variant's model with what was logged so far, and serve the next version.

        Raises:
            ServiceError: An update fails for another reason than its guard's.
        """
        for variant, live in self._ready.models.items():
            self._on_stage(f"update {variant}")
            began = time.perf_counter()
            told = self._service.update(live, as_of_ms)
            self.updates.append({"variant": variant, "took_s": time.perf_counter() - began, **told})

    @property
    def update_s(self) -> float:
        """Seconds that updates took."""
        return sum(update["took_s"] for update in self.updates)
