"""One policy with many weights: what it makes of the same lists of items, fast enough to try hundreds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError
from infnet.ranking.combine import combine
from infnet.ranking.policy import Policy
from infnet.ranking.policy_spec import Segment

__all__ = ["CandidateList", "Reweighted"]


@dataclass(frozen=True)
class CandidateList:
    """Items to be ordered, as for one request."""

    predictions: Mapping[str, NDArray[np.floating[Any]]]
    """(N,) by task."""
    items: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """By field one raw value per item."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """The request's fields."""

    def __len__(self) -> int:
        return len(next(iter(self.predictions.values())))


class Reweighted:
    """Lists that a policy orders by any weights of its objectives; n items in all.

    What does not depend on weights is worked out once: objectives, normalisation, segments. Segments keep the weights
    that they declare.

    Args:
        policy: The policy; ads are not sold.
        lists: In turn.
        limit: Positions of a list that matter, all by default.

    Attributes:
        starts: (G + 1,) list g holds the items ``starts[g]:starts[g + 1]``.
        numbers: (n,) list of each item.

    Raises:
        DataError: There is no list, a field's value is no number, or diversity compares vectors, which lists lack.
    """

    def __init__(self, policy: Policy, lists: Iterable[CandidateList], limit: int | None = None) -> None:
        if policy.reranker.wants_vectors:
            raise DataError(
                f"policy '{policy.spec.name}': 'diversity' compares vectors of items, which were not kept; declare the "
                "fields it is 'by'"
            )
        self._policy, self._limit = policy, limit
        self._has_rules = bool(policy.spec.constraints) or policy.spec.diversity is not None
        self._lists: list[tuple[Mapping[str, NDArray[np.float64]], Mapping[str, Sequence[Any]]]] = []
        sizes, values, chosen = [], [], []
        for each in lists:
            columns = policy.columns(len(each), each.predictions, each.items, each.request)
            values.append(self._summands(policy.values(len(each), columns)))
            sizes.append(len(each))
            chosen.append(policy.segment(columns))
            if self._has_rules:
                self._lists.append((columns, each.items))
        if not sizes:
            raise DataError("there is no list of items to be ordered; give a log or a split that has some")
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        self.numbers = np.repeat(np.arange(len(sizes)), sizes)
        self._values = np.concatenate(values, axis=1)
        self._rows: list[tuple[Segment | None, NDArray[np.intp]]] = []
        for segment in (None, *policy.spec.segments):
            is_in = np.array([each is segment for each in chosen])
            if is_in.any():
                self._rows.append((segment, np.flatnonzero(is_in[self.numbers])))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Score of each item (n,) under weights (K,), in the order in which the policy declares its objectives."""
        spec = self._policy.spec
        # Each list's ranks are taken already, so that their fusion is a sum.
        how = "weighted_sum" if spec.combine == "rank_fusion" else spec.combine
        scores = np.empty(len(self.numbers))
        for segment, rows in self._rows:
            own = {} if segment is None else segment.weights
            merged = [own.get(name, weight) for name, weight in zip(spec.objectives, weights.tolist(), strict=True)]
            values = self._values if len(self._rows) == 1 else self._values[:, rows]
            scores[rows] = combine(values, np.array(merged), how)[0]
        return scores

    def positions(self, weights: NDArray[np.float64]) -> NDArray[np.intp]:
        """Position of each item (n,) in its list, from 0; -1 of one that is not shown, or beyond the limit."""
        scores = self.scores(weights)
        positions = np.full(len(scores), -1, dtype=np.intp)
        if not self._has_rules:
            order = np.lexsort((-scores, self.numbers))
            positions[order] = np.arange(len(scores)) - self.starts[self.numbers]
            if self._limit is not None:
                positions[positions >= self._limit] = -1
            return positions
        for (columns, items), start, end in zip(self._lists, self.starts[:-1], self.starts[1:], strict=True):
            limit = int(end - start) if self._limit is None else self._limit
            places = self._policy.reranker.order(scores[start:end], columns, items, limit).places
            positions[start + places] = np.arange(len(places))
        return positions

    def _summands(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._policy.spec.combine != "rank_fusion":
            return values
        return combine(values, np.ones(len(values)), "rank_fusion")[1]
