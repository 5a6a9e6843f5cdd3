"""NDCG@k and recall@k: what a user sees at the top of the ranking.

Rows of one user with equal scores have no order of their own. Both metrics give the expected value over all orders of
such rows, so neither the order of the log nor a sort's habits can change them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import SpecError
from infnet.evaluation.ordered import OrderedRows, order_rows

__all__ = ["ndcg_at", "ndcg_at_of", "recall_at", "recall_at_of"]


def ndcg_at(k: int, labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> float:
    """Normalised discounted cumulative gain of each user's first k rows, averaged over users with a positive.

    A positive at rank r (from 1) gains 1 / log2(1 + r); the sum is divided by that of the best possible order.

    Args:
        k: Ranks that count.
        labels: (n,) 0 or 1.
        scores: (n,) finite; ties give the expected value over their orders.
        users: (n,) integer ids.

    Returns:
        NaN if no user has a positive.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
        SpecError: k is less than 1.
    """
    return ndcg_at_of(k, order_rows(labels, scores, users))


def recall_at(k: int, labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> float:
    """Share of a user's positives that are among the user's first k rows, averaged over users with a positive.

    With more than k positives a user cannot reach 1. Arguments, ties, result and errors as for :func:`ndcg_at`.
    """
    return recall_at_of(k, order_rows(labels, scores, users))


def ndcg_at_of(k: int, rows: OrderedRows) -> float:
    """:func:`ndcg_at` from rows sorted already."""
    positives = _positives(k, rows)
    depth = min(k, len(rows.keys))
    gains = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, depth + 2)))))
    return _mean_per_user(_gain(k, rows, gains), gains[np.minimum(positives, depth)])


def recall_at_of(k: int, rows: OrderedRows) -> float:
    """:func:`recall_at` from rows sorted already."""
    positives = _positives(k, rows)
    gains = np.arange(min(k, len(rows.keys)) + 1, dtype=np.float64)
    return _mean_per_user(_gain(k, rows, gains), positives.astype(np.float64))


def _positives(k: int, rows: OrderedRows) -> NDArray[np.int64]:
    if k < 1:
        raise SpecError(f"k is {k}, wanted at least 1; it is the number of ranks that count")
    return np.diff(np.searchsorted(rows.positive_rows(), rows.starts))


def _gain(k: int, rows: OrderedRows, gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """(U,) expected gain, where ``gains[r]`` is what positives at all of the first r ranks would give together."""
    runs = rows.top(k).tie_runs()
    within = gains[np.minimum(runs.last, len(gains) - 1)] - gains[runs.first]
    expected = within * (runs.positives / (runs.last - runs.first))
    return np.bincount(runs.user, weights=expected, minlength=len(rows.users)).astype(np.float64, copy=False)


def _mean_per_user(gain: NDArray[np.float64], best: NDArray[np.float64]) -> float:
    has_positive = best > 0
    return float(np.mean(gain[has_positive] / best[has_positive])) if has_positive.any() else math.nan
