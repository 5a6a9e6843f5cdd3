"""How much of a request can be done in the time it has left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["DEGRADATIONS", "Costs", "Degradation", "Plan"]

Degradation: TypeAlias = Literal["skipped_reranking", "capped_candidates", "last_known_features", "popularity_order"]
DEGRADATIONS: tuple[Degradation, ...] = (
    *("skipped_reranking", "capped_candidates"),
    *("last_known_features", "popularity_order"),
)
"""What is left out when time runs short, first to last: order by the policy's scores alone; score only the candidates
with the highest prior score; do not ask the feature store; do not ask the model."""

_LEAST_CANDIDATES = 20
_SAFETY = 1.5
"""Times what is usual, that a plan counts on."""
_RATE = 0.05
"""Weight of the latest observation in the running means."""
_OUTLIER = 4.0
"""An observation counts as at most so many times what is usual: one long pause says little of the next request."""
_EASE = 0.98
"""What leaves something out is not observed; so that it is tried again after a while, its cost is taken to have fallen
by so much with each request that does without."""


@dataclass(frozen=True)
class Plan:
    """What to do of a request."""

    asks_store: bool
    num_candidates: int
    """To score, those with the highest prior first; 0 to answer by the prior alone."""


class Costs:
    """Running means of what stages take.

    Threads share one without a lock: an observation lost now and then does not matter.
    """

    def __init__(self) -> None:
        self.fetch_s = 0.001
        self.base_s = 0.001
        """Of a request whatever its size."""
        self.candidate_s = 8e-6
        self.rerank_s = 0.002
        """Of making a page of what is scored."""
        self.service_s = 0.005
        """Of a worker per request, all stages."""

    def fetched(self, seconds: float) -> None:
        """Count one call of the feature store."""
        self.fetch_s = _moved(self.fetch_s, seconds)

    def scored(self, seconds: float, num_candidates: int) -> None:
        """Count the encoding and scoring of so many candidates."""
        if num_candidates >= _LEAST_CANDIDATES:
            self.candidate_s = _moved(self.candidate_s, max(0.0, seconds - self.base_s) / num_candidates)
        else:
            self.base_s = _moved(self.base_s, seconds)

    def reranked(self, seconds: float) -> None:
        """Count the making of one page."""
        self.rerank_s = _moved(self.rerank_s, seconds)

    def may_rerank(self, left_s: float) -> bool:
        """Whether there is time for making a page."""
        if left_s >= _SAFETY * self.rerank_s:
            return True
        self.rerank_s *= _EASE
        return False

    def served(self, seconds: float) -> None:
        """Count all that a worker did for one request."""
        self.service_s = _moved(self.service_s, seconds)

    def wait_s(self, num_before: int, num_workers: int) -> float:
        """How long a request waits behind so many others."""
        return num_before * self.service_s / num_workers

    def shed(self) -> None:
        """Count a request that was refused though nobody waited: nothing else would show that it has become faster."""
        self.service_s *= _EASE

    def left_out(self, plan: Plan) -> None:
        """Count a request that goes by a plan, and does without what that leaves out."""
        if not plan.asks_store:
            self.fetch_s *= _EASE
        if not plan.num_candidates:
            self.base_s *= _EASE
            self.candidate_s *= _EASE

    def plan(self, left_s: float, num_candidates: int) -> Plan:
        """The most that fits into the time left."""

        def fitting(seconds: float) -> int:
            spare = seconds / _SAFETY - self.base_s
            return max(0, min(num_candidates, math.floor(spare / self.candidate_s))) if spare > 0 else 0

        least = min(num_candidates, _LEAST_CANDIDATES)
        with_store = fitting(left_s - _SAFETY * self.fetch_s)
        if with_store >= least and left_s > 0:
            return Plan(asks_store=True, num_candidates=with_store)
        without = fitting(left_s)
        return Plan(asks_store=False, num_candidates=without if without >= least and left_s > 0 else 0)


def _moved(mean_s: float, seconds: float) -> float:
    return mean_s + _RATE * (min(seconds, _OUTLIER * mean_s) - mean_s)
