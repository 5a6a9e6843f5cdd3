"""Several objectives into one score."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.policy_spec import Combination, Normalisation

__all__ = ["combine", "normalise"]

Matrix: TypeAlias = NDArray[np.float64]

_RANK_CONSTANT = 60.0
"""Of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""
_LEAST = 1e-12
"""A factor of a product is at least this: one objective that is 0 would make all others pointless."""


def normalise(values: Matrix, how: Normalisation) -> Matrix:
    """An objective's values (N,) on a scale that does not depend on its unit; all 0 where they are all equal.

    ``minmax``: from 0 to 1. ``zscore``: mean 0, standard deviation 1. ``rank``: 0 for the worst, 1 for the best, ties
    the mean of their places.
    """
    if how == "none" or not len(values):
        return values
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros_like(values)
    if how == "minmax":
        return (values - low) / (high - low)
    if how == "zscore":
        scaled = (values - values.mean()) / (high - low)  # first, so that the squares stay finite
        deviation: np.float64 = scaled.std()
        return scaled / deviation
    return (len(values) - _ranks(-values)) / (len(values) - 1)


def combine(values: Matrix, weights: Matrix, how: Combination) -> tuple[Matrix, Matrix]:
    """Scores (N,), and each objective's part in them (K, N).

    The parts add up to the score; of a ``product_of_powers`` they multiply to it.

    Args:
        values: (K, N) of the objectives, normalised.
        weights: (K,).
        how: See :class:`PolicySpec`.
    """
    if how == "weighted_sum":
        parts = weights[:, None] * values
        return parts.sum(axis=0), parts
    if how == "product_of_powers":
        parts = np.maximum(values, _LEAST) ** weights[:, None]
        return parts.prod(axis=0), parts
    ranks = np.stack([_ranks(-row) for row in values]) if len(values) else values
    parts = weights[:, None] / (_RANK_CONSTANT + ranks)
    return parts.sum(axis=0), parts


def _ranks(keys: Matrix) -> Matrix:
    """1 for the smallest; ties get the mean of their places."""
    ordered = np.sort(keys)
    first = np.searchsorted(ordered, keys, side="left")
    last = np.searchsorted(ordered, keys, side="right")
    return (first + last + 1) / 2.0
