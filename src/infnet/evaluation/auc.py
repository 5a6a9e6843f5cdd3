"""AUC, and AUC within users: does a positive score higher than a negative?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import DataError, SpecError, did_you_mean
from infnet.evaluation.arrays import finite_numbers
from infnet.evaluation.ordered import OrderedRows, order_rows, steps

__all__ = ["UserAucs", "UserWeight", "auc", "gauc", "mean_defined", "mtl_auc", "user_aucs", "user_aucs_of"]

UserWeight = Literal["impressions", "positives", "uniform"]
"""How much a user counts in gAUC: by rows, by positive rows, or all alike."""


@dataclass(frozen=True)
class UserAucs:
    """AUC of each of U users, by ascending user id."""

    user: NDArray[Any]
    """(U,) distinct ids."""
    auc: NDArray[np.float64]
    """(U,) NaN for a user with only one kind of label, who has no order to judge."""
    impressions: NDArray[np.int64]
    """(U,) rows of the user."""
    positives: NDArray[np.int64]
    """(U,) positive rows of the user."""

    @property
    def is_judged(self) -> NDArray[np.bool_]:
        """(U,) True for users with both kinds of label."""
        return (self.positives > 0) & (self.positives < self.impressions)

    def mean(self, weight: UserWeight = "impressions") -> float:
        """gAUC: the judged users' AUC, averaged; NaN if there are none.

        Raises:
            SpecError: There is no such weight.
        """
        if weight not in get_args(UserWeight):
            raise SpecError(f"unknown gAUC weight '{weight}'{did_you_mean(weight, get_args(UserWeight))}")
        judged = self.is_judged
        if not judged.any():
            return math.nan
        weights = {"impressions": self.impressions, "positives": self.positives, "uniform": np.ones(len(judged))}
        return float(np.average(self.auc[judged], weights=weights[weight][judged]))


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a random positive scores higher than a random negative; ties count one half.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any finite numbers; only their order matters.

    Returns:
        NaN if there is only one kind of label: undefined, not 0.5.

    Raises:
        DataError: Lengths differ, a label is not 0 or 1, or a score is not finite.
    """
    values = finite_numbers(scores)
    aucs = user_aucs(labels, values, np.zeros(len(values), np.int64)).auc
    return float(aucs[0]) if len(aucs) else math.nan


def gauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike, weight: UserWeight = "impressions") -> float:
    """AUC within each user, averaged over users; ties count one half.

    A user with only one kind of label has no order to judge and is left out, weight included.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any finite numbers; only their order within a user matters.
        users: (n,) integer ids.
        weight: What a user counts by; impressions unless named otherwise.

    Returns:
        NaN if no user is left.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
        SpecError: There is no such weight.
    """
    return user_aucs(labels, scores, users).mean(weight)


def user_aucs(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> UserAucs:
    """AUC of every user; arguments and errors as for :func:`gauc`."""
    return user_aucs_of(order_rows(labels, scores, users))


def user_aucs_of(rows: OrderedRows) -> UserAucs:
    """AUC of every user from rows sorted already.

    In ascending order, negatives first among ties, a positive has below it or tied with it as many negatives as stand
    before it. Counted twice, less the tied pairs, this is twice the numerator: an integer, rounded only when divided.
    """
    starts, impressions = rows.starts, rows.impressions
    at = rows.positive_rows()
    bounds = np.searchsorted(at, starts)
    positives = np.diff(bounds)
    negatives = impressions - positives
    # Negatives before a positive, any user's, less those of the users before it.
    before = np.concatenate(([0], np.cumsum(at - np.arange(len(at)))))
    pairs = np.diff(before[bounds]) - positives * (starts[:-1] - bounds[:-1])
    doubled = 2 * pairs - _tied_pairs(rows)
    auc = np.full(len(positives), np.nan)
    np.divide(doubled, 2 * positives * negatives, out=auc, where=(positives > 0) & (negatives > 0))
    return UserAucs(rows.users, auc, impressions, positives)


def mtl_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """AUC averaged over tasks: how a multi-task model is summed up in one number.

    Args:
        labels: (n, T) 0 or 1, NaN where unobserved; such rows do not count for that task.
        scores: (n, T).

    Returns:
        The mean over the tasks whose AUC is defined; NaN if none is.

    Raises:
        DataError: Shapes differ, or a value is of the wrong kind.
    """
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != values.shape:
        raise DataError(f"labels have the shape {truth.shape} and scores {values.shape}, wanted (n, T) of both")
    observed = truth == truth  # noqa: PLR0124 (False for NaN, and works for integers)
    pairs = zip(truth.T, values.T, observed.T, strict=True)
    return mean_defined([auc(task[rows], task_scores[rows]) for task, task_scores, rows in pairs])


def mean_defined(values: Iterable[float]) -> float:
    """Mean of those that are defined (not NaN); NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _tied_pairs(rows: OrderedRows) -> NDArray[np.int64]:
    """(U,) pairs of a positive and a negative with the same score, of each user."""
    keys = rows.keys
    # Where a tie goes from its negatives to its positives, only the label bit changes.
    turns = steps(keys, lambda change: change == 1)
    first, last = np.searchsorted(keys, keys[turns - 1]), np.searchsorted(keys, keys[turns], side="right")
    pairs = np.concatenate(([0], np.cumsum((turns - first) * (last - turns))))
    return np.diff(pairs[np.searchsorted(turns, rows.starts)])
