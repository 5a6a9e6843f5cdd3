"""How the learning rate moves over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Schedule", "ScheduleKind"]

ScheduleKind = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Factor on every learning rate: a linear warm-up, then constant, or half a cosine from 1 towards 0."""

    kind: ScheduleKind
    warmup_steps: int
    total_steps: int
    """Steps of the whole run, warm-up included; where the cosine ends."""

    def factor(self, step: int) -> float:
        """For the update number ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        remaining = max(1, self.total_steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / remaining)))
