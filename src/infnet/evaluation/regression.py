"""How far off are predicted amounts, such as watch time? R2, MAE and RMSE."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.evaluation.arrays import check_same_length, finite_numbers

__all__ = ["mae", "r2", "rmse"]


def r2(labels: ArrayLike, scores: ArrayLike) -> float:
    """Share of the labels' variance that is explained: 1 is perfect, 0 no better than their mean, less is worse.

    Args:
        labels: (n,) finite.
        scores: (n,) finite, in the labels' unit.

    Returns:
        NaN if the labels do not vary.

    Raises:
        DataError: Lengths differ, or a value is not finite.
    """
    truth, values = _checked(labels, scores)
    if len(truth) == 0 or truth.min() == truth.max():
        return math.nan
    variation = float(np.square(truth - truth.mean()).sum())
    return 1 - float(np.square(truth - values).sum()) / variation if variation > 0 else math.nan


def mae(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean absolute error, in the labels' unit; NaN if there are no rows. Arguments and errors as for :func:`r2`."""
    truth, values = _checked(labels, scores)
    return float(np.abs(truth - values).mean()) if len(truth) else math.nan


def rmse(labels: ArrayLike, scores: ArrayLike) -> float:
    """Root of the mean squared error, in the labels' unit; otherwise as :func:`mae`."""
    truth, values = _checked(labels, scores)
    return math.sqrt(float(np.square(truth - values).mean())) if len(truth) else math.nan


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth, values = finite_numbers(labels, "labels").astype(np.float64), finite_numbers(scores).astype(np.float64)
    check_same_length(labels=truth, scores=values)
    return truth, values
