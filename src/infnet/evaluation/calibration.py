"""Are probabilities right as numbers? Log loss, PCOC and expected calibration error."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import SpecError, did_you_mean
from infnet.evaluation.arrays import binary_labels, check_same_length, probabilities

__all__ = ["LOG_LOSS_EPS", "Bins", "expected_calibration_error", "log_loss", "pcoc"]

LOG_LOSS_EPS = 1e-7
"""Probabilities are kept this far from 0 and 1, so one row costs at most 16.1."""

Bins = Literal["equal_frequency", "equal_width"]
"""Bins of as many rows each, or of the same width in probability."""


def log_loss(labels: ArrayLike, probs: ArrayLike, eps: float = LOG_LOSS_EPS) -> float:
    """Mean of -log(prob of what happened), in nats: the loss of INFNet eq. 13 for one task.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) within [0, 1], clipped to [eps, 1 - eps].
        eps: How close to certain a prob may be.

    Returns:
        NaN if there are no rows.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
    """
    positive, values = _checked(labels, probs)
    if len(values) == 0:
        return math.nan
    # -log(1 - p) through log1p: 1 - p would lose the digits of a small p.
    clipped = np.clip(values, eps, 1 - eps)
    return float(-np.log(clipped[positive]).sum() - np.log1p(-clipped[~positive]).sum()) / len(values)


def pcoc(labels: ArrayLike, probs: ArrayLike) -> float:
    """Predicted over observed: mean prob / mean label, where 1 is right and 2 promises twice the clicks.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) within [0, 1].

    Returns:
        NaN if there are no positives.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
    """
    positive, values = _checked(labels, probs)
    observed = int(positive.sum())
    return float(values.sum()) / observed if observed else math.nan


def expected_calibration_error(
    labels: ArrayLike, probs: ArrayLike, num_bins: int = 20, bins: Bins = "equal_frequency"
) -> float:
    """Mean over rows of |mean prob - mean label| of the row's bin.

    Equal-frequency bins (the default) follow the data: where most probs are small, bins of equal width hold nearly
    all rows in one. Rows with equal probs share a bin, that of the first of them in sorted order, so bins may be
    fewer or fuller than asked for, and the order of the rows changes nothing.

    Args:
        labels: (n,) 0 or 1.
        probs: (n,) within [0, 1].
        num_bins: At most this many bins.
        bins: How they are cut.

    Returns:
        NaN if there are no rows.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
        SpecError: There are no such bins.
    """
    positive, values = _checked(labels, probs)
    if num_bins < 1:
        raise SpecError(f"num_bins is {num_bins}, wanted at least 1")
    if bins not in get_args(Bins):
        raise SpecError(f"unknown bins '{bins}'{did_you_mean(bins, get_args(Bins))}")
    if len(values) == 0:
        return math.nan
    if bins == "equal_frequency":
        order = np.argsort(values)
        positive, values = positive[order], values[order]
        begins = np.concatenate(([True], values[1:] != values[:-1]))
        first = np.maximum.accumulate(np.where(begins, np.arange(len(values)), 0))
        bin_of_row = first * num_bins // len(values)
    else:
        bin_of_row = np.minimum((values * num_bins).astype(np.int64), num_bins - 1)
    excess = np.bincount(bin_of_row, weights=values - positive, minlength=num_bins)
    return float(np.abs(excess).sum()) / len(values)


def _checked(labels: ArrayLike, probs: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    positive, values = binary_labels(labels), probabilities(probs)
    check_same_length(labels=positive, probabilities=values)
    return positive, values
