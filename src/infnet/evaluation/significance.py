"""Is a model better than another, or lucky with users and seeds? Paired bootstrap, and Holm's correction.

B. Efron & R. Tibshirani, "An Introduction to the Bootstrap" (1993); for few seeds T. Hesterberg, "What Teachers Should
Know About the Bootstrap", The American Statistician 69 (2015); S. Holm, "A Simple Sequentially Rejective Multiple Test
Procedure", Scandinavian Journal of Statistics 6 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError, SpecError
from infnet.evaluation.arrays import binary_labels, finite_numbers
from infnet.evaluation.auc import user_aucs
from infnet.evaluation.predictions import Predictions

__all__ = ["MEAN", "METRICS", "Difference", "Resampled", "UserBootstrap", "WeightedAuc", "compare", "holm"]

METRICS = ("auc", "gauc")
"""What is resampled."""

MEAN = "mean"
"""The part that is the average over the binary tasks."""

_CHUNK = 1 << 17
"""Rows times replicates that are worked on together, so that they stay in the processor's cache."""

_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Student's t: quantile 0.975 for 1 to 10 degrees of freedom."""

_Z_975 = 1.959964

_Measure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Counts (b, U) of users -> the metric (b,)."""


@dataclass(frozen=True)
class Resampled:
    """AUC and gAUC of one run on a split, and on B resamples of its users."""

    parts: tuple[str, ...]
    """(P,) the binary tasks, then ``mean``."""
    values: NDArray[np.float64]
    """(2, P) on the split itself, by :data:`METRICS`; NaN where undefined."""
    draws: NDArray[np.float64]
    """(2, P, B) on the resamples."""


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another; all NaN where it is undefined."""

    value: float
    low: float
    """Of the 95% interval."""
    high: float
    p_value: float
    """Two-sided."""

    def as_json(self) -> dict[str, float | None]:
        """By name, None where undefined."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


class UserBootstrap:
    """Resamples of the users of a split, the same ones for every run that is judged on it.

    A user is drawn with all of his rows, because rows of one user are alike: resampling rows would claim to know more
    than the data tell.

    Args:
        rows: Predictions of any run on the split.
        replicates: B.
        seed: Of the resamples.
    """

    def __init__(self, rows: Predictions, replicates: int = 2000, seed: int = 0) -> None:
        if replicates < 1:
            raise SpecError(f"replicates is {replicates}, wanted at least 1")
        self.replicates, self.seed = replicates, seed
        self._rows = rows
        distinct, self._users = np.unique(rows.users, return_inverse=True)
        self.num_users = len(distinct)

    def resample(self, predictions: Predictions) -> Resampled:
        """AUC and gAUC of a run on the split and on every resample.

        Raises:
            DataError: The predictions are of other rows, or scores are no finite numbers.
        """
        self._check(predictions)
        columns = [c for c, kind in enumerate(predictions.kinds) if kind == "binary"]
        tasks = [self._measures(predictions, column) for column in columns]
        draws = np.empty((len(METRICS), len(tasks), self.replicates))
        size = max(1, _CHUNK // max(1, len(predictions)))
        for start in range(0, self.replicates, size):
            counts = self.counts(start, min(start + size, self.replicates))
            for index, measures in enumerate(tasks):
                for metric, measure in enumerate(measures):
                    draws[metric, index, start : start + len(counts)] = measure(counts)
        once = np.ones((1, self.num_users))
        values = np.array([[measure(once)[0] for measure in measures] for measures in tasks]).reshape(-1, 2).T
        return Resampled(
            parts=(*(predictions.tasks[column] for column in columns), MEAN),
            values=np.concatenate([values, _means(values, values)], axis=1),
            draws=np.concatenate([draws, _means(draws, values)], axis=1),
        )

    def counts(self, first: int, last: int) -> NDArray[np.float64]:
        """How often each user (U,), by ascending id, is drawn in replicates ``first`` to ``last - 1``: (b, U)."""
        counts = np.empty((last - first, self.num_users))
        for row, replicate in enumerate(range(first, last)):
            # Each replicate has a seed of its own, so that how many are drawn together changes nothing.
            drawn = np.random.default_rng((self.seed, replicate)).integers(0, self.num_users, self.num_users)
            counts[row] = np.bincount(drawn, minlength=self.num_users)
        return counts

    def _check(self, predictions: Predictions) -> None:
        own = self._rows
        if (
            predictions.tasks != own.tasks
            or not np.array_equal(predictions.users, own.users)
            or not np.array_equal(predictions.labels, own.labels, equal_nan=True)
        ):
            raise DataError(
                f"predictions of {len(predictions)} rows with tasks {', '.join(predictions.tasks)} are not of the same "
                f"{len(own)} rows as those compared with; predict the same split of the same dataset"
            )

    def _measures(self, predictions: Predictions, column: int) -> tuple[_Measure, _Measure]:
        observed = ~np.isnan(predictions.labels[:, column])
        rows = (predictions.labels[observed, column], predictions.scores[observed, column], self._users[observed])
        return WeightedAuc(*rows), _WeightedGauc(*rows, num_users=self.num_users)


class WeightedAuc:
    """AUC of rows that count as often as their user does; sorted once, then linear time for every set of counts.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) finite; ties count one half.
        users: (n,) from 0 to U - 1.
    """

    def __init__(self, labels: NDArray[Any], scores: NDArray[Any], users: NDArray[np.integer[Any]]) -> None:
        positive, values = binary_labels(labels), finite_numbers(scores)
        negatives = np.flatnonzero(~positive)
        negatives = negatives[np.argsort(values[negatives], kind="stable")]
        positives = np.flatnonzero(positive)
        positives = positives[np.argsort(values[positives], kind="stable")]
        self._negative_users, self._positive_users = users[negatives], users[positives]
        self._below = np.searchsorted(values[negatives], values[positives], side="left")
        self._up_to = np.searchsorted(values[negatives], values[positives], side="right")
        self._has_ties = not np.array_equal(self._below, self._up_to)

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts (b, U) -> AUC (b,), NaN where only one kind of label is left."""
        before = np.zeros((len(counts), len(self._negative_users) + 1))
        np.cumsum(counts.take(self._negative_users, axis=1, mode="clip"), axis=1, out=before[:, 1:])
        credit = before.take(self._up_to, axis=1, mode="clip")
        if self._has_ties:
            credit = (credit + before.take(self._below, axis=1, mode="clip")) / 2
        weights = counts.take(self._positive_users, axis=1, mode="clip")
        return _ratio(np.einsum("bp,bp->b", weights, credit), weights.sum(axis=1) * before[:, -1])


class _WeightedGauc:
    """gAUC of users that count several times: their own AUCs never change."""

    def __init__(
        self, labels: NDArray[Any], scores: NDArray[Any], users: NDArray[np.integer[Any]], num_users: int
    ) -> None:
        by_user = user_aucs(labels, scores, users)
        judged = by_user.is_judged
        self._sums = np.zeros((num_users, 2))
        self._sums[by_user.user[judged], 0] = (by_user.auc * by_user.impressions)[judged]
        self._sums[by_user.user[judged], 1] = by_user.impressions[judged]

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts (b, U) -> gAUC (b,), NaN where nobody is judged."""
        weighted, weights = (counts @ self._sums).T
        return _ratio(weighted, weights)


def compare(
    ours: Sequence[Resampled], theirs: Sequence[Resampled], *, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """By metric and part, how much better one model is than another, each trained with one or more seeds.

    A model's value is the mean over its seeds. Both models see the same resamples of users; their seeds are resampled
    each for itself, so that a difference has to stand out from both. A handful of seeds says little about their spread:
    resampled as they are, their deviations would be too small by sqrt((S - 1) / S), and by Student's t for so few of
    them, so they are stretched by both. A model with one seed counts as if every seed gave the same.

    Args:
        ours: Of each seed of the one model.
        theirs: Of each seed of the other.
        seed: Of the resamples of seeds.

    Raises:
        DataError: The runs were not resampled alike.
    """
    parts, shape = ours[0].parts, ours[0].draws.shape
    if any(run.parts != parts or run.draws.shape != shape for run in (*ours, *theirs)):
        raise DataError("runs were resampled in different ways; use one UserBootstrap for all")
    freedom = len(ours) + len(theirs) - 2
    values = _mean_value(ours) - _mean_value(theirs)
    rng = np.random.default_rng(seed)
    draws = _mean_draws(ours, freedom, rng) - _mean_draws(theirs, freedom, rng)
    return {
        metric: {part: _difference(float(values[m, p]), draws[m, p]) for p, part in enumerate(parts)}
        for m, metric in enumerate(METRICS)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several, in the order given; NaN stays and does not count.

    Rejecting those below a level keeps the chance of any false rejection below it, however they depend on each other.
    """
    corrected = [math.nan] * len(p_values)
    defined = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    highest = 0.0
    for rank, index in enumerate(defined):
        highest = max(highest, min(1.0, (len(defined) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _means(of_tasks: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, T, ..) -> (2, 1, ..): the average over the tasks whose metric is defined on the split itself."""
    means = np.full_like(of_tasks[:, :1], np.nan) if of_tasks.shape[1] else np.full((2, 1, *of_tasks.shape[2:]), np.nan)
    for metric, defined in enumerate(~np.isnan(values)):
        if defined.any():
            means[metric, 0] = of_tasks[metric, defined].mean(axis=0)
    return means


def _mean_value(runs: Sequence[Resampled]) -> NDArray[np.float64]:
    return np.mean([run.values for run in runs], axis=0)


def _mean_draws(runs: Sequence[Resampled], freedom: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, P, B) mean over resampled seeds."""
    num = len(runs)
    if num == 1:
        return runs[0].draws
    replicates = runs[0].draws.shape[-1]
    deviations = rng.multinomial(num, [1 / num] * num, replicates).T / num - 1 / num  # (S, B)
    weights = 1 / num + deviations * math.sqrt(num / (num - 1)) * _t_975(freedom) / _Z_975
    return np.einsum("sb,smpb->mpb", weights, np.stack([run.draws for run in runs]))


def _difference(value: float, draws: NDArray[np.float64]) -> Difference:
    """Percentile interval, and how often a resample strays from the difference by as much as that is from zero."""
    defined = draws[~np.isnan(draws)]  # a resample may lack the positives of a rare task
    if math.isnan(value) or not len(defined):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    low, high = np.quantile(defined, (0.025, 0.975))
    as_far = int((np.abs(defined - value) >= abs(value)).sum())
    return Difference(value, float(low), float(high), (as_far + 1) / (len(defined) + 1))


def _t_975(freedom: int) -> float:
    """Student's t quantile 0.975; beyond the table by its expansion in 1 / freedom (Abramowitz & Stegun 26.7.5)."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z, v = _Z_975, freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
