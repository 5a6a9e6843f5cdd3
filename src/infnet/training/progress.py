"""Progress: what a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    epoch: int
    """From 1."""
    epochs: int
    batch: int
    """Done in this epoch."""
    batches: int
    """In an epoch; about, when rows are grouped into sessions."""
    step: int
    """Done in all."""
    loss: float | None
    """Mean over the steps before the last line of the log; None before the first."""
    rows_per_s: float | None
    """Over the same steps."""
    monitor: str
    best: float | None
    """Best value of the monitored metric so far."""
    stale: int
    """Evaluations since."""
    is_evaluating: bool = False
    """An evaluation begins now."""


ProgressCallback = Callable[[Progress], None]
"""Called after every step, and before and after every evaluation."""
