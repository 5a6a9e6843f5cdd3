"""Means and variances of a metric by variant: the delta method at user level, and CUPED.

A. Deng, U. Knoblich, J. Lu, "Applying the Delta Method in Metric Analytics", KDD 2018; A. Deng, Y. Xu, R. Kohavi,
T. Walker, "Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data", WSDM 2013. The
statistics are those of tea-tasting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from types import ModuleType
from typing import TYPE_CHECKING, Any

from infnet.errors import SpecError
from infnet.experiments.metrics import MetricSpec

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Moments", "aggregates", "load_tea_tasting", "moments", "tea_metric", "usable_columns"]

_ROUNDING = 1e-6
"""Of a standard deviation beside the mean."""


@dataclass(frozen=True)
class Moments:
    """Of a metric in one variant."""

    count: int
    """Users."""
    mean: float
    variance: float
    """Of one user's part in the mean, linearised."""

    @property
    def squared_error(self) -> float:
        """Variance of the mean."""
        return self.variance / self.count

    @property
    def has_spread(self) -> bool:
        """Whether users differ; where they do not, sums leave a variance of rounding errors."""
        return math.isfinite(self.variance) and math.sqrt(self.variance) > _ROUNDING * abs(self.mean)


def load_tea_tasting() -> ModuleType:
    """The library, loaded when it is first needed.

    Raises:
        SpecError: It is not installed.
    """
    try:
        import tea_tasting.aggr
    except ImportError as error:
        message = "experiments are analysed by tea-tasting, which is not here: pip install 'infnet[experiments]'"
        raise SpecError(message) from error
    return tea_tasting


def aggregates(users: pl.DataFrame, metrics: Sequence[MetricSpec]) -> dict[str, Any]:
    """By variant the counts, means and covariances (``tea_tasting.aggr.Aggregates``) that all metrics need."""
    groups = [_columns(metric, users.columns) for metric in metrics]
    columns = sorted({column for group in groups for column in group})
    pairs = {pair for group in groups for pair in combinations(sorted(set(group)), 2)}
    kept = users.select("variant", *columns)
    found = load_tea_tasting().aggr.read_aggregates(
        kept, "variant", has_count=True, mean_cols=columns, var_cols=columns, cov_cols=sorted(pairs)
    )
    return {str(name): value for name, value in found.items()}


def usable_columns(metric: MetricSpec, groups: Sequence[Any], columns: Sequence[str]) -> list[str] | None:
    """The columns, without those of the metric's pre-period if nothing happened in it.

    None if the metric is undefined in one of the groups (``Aggregates``): fewer than two users, or no denominator.
    """
    _, denominator, pre_numerator, pre_denominator = _roles(metric, columns)
    if any(group.count() < 2 or not group.mean(denominator) for group in groups):
        return None
    if pre_numerator is None:
        return list(columns)
    has_spread = all(group.mean(pre_denominator) for group in groups) and all(
        group.ratio_var(pre_numerator, pre_denominator) > 0 for group in groups
    )
    return [c for c in columns if has_spread or c not in (pre_numerator, pre_denominator)]


def tea_metric(metric: MetricSpec, columns: Sequence[str], **settings: Any) -> Any:
    """The metric for tea-tasting, with its pre-period as covariate if the usable ``columns`` have it."""
    tea = load_tea_tasting()
    numerator, denominator, pre_numerator, pre_denominator = _roles(metric, columns)
    if denominator is None:
        return tea.Mean(numerator, pre_numerator, **settings)
    return tea.RatioOfMeans(numerator, denominator, pre_numerator, pre_denominator, **settings)


def moments(metric: MetricSpec, groups: Sequence[Any], columns: Sequence[str]) -> list[Moments]:
    """Of each group (``Aggregates``), adjusted by the pre-period if the usable ``columns`` have it.

    CUPED's coefficient is one for all groups, that of all their users together.
    """
    numerator, denominator, pre_numerator, pre_denominator = _roles(metric, columns)
    slope, centre = 0.0, 0.0
    if pre_numerator is not None:
        total = reduce(lambda one, other: one + other, groups)
        slope = total.ratio_cov(numerator, denominator, pre_numerator, pre_denominator)
        slope /= total.ratio_var(pre_numerator, pre_denominator)
        centre = total.mean(pre_numerator) / total.mean(pre_denominator)
    found = []
    for group in groups:
        mean, variance = group.mean(numerator) / group.mean(denominator), group.ratio_var(numerator, denominator)
        if pre_numerator is not None:
            mean -= slope * (group.mean(pre_numerator) / group.mean(pre_denominator) - centre)
            variance += slope**2 * group.ratio_var(pre_numerator, pre_denominator)
            variance -= 2 * slope * group.ratio_cov(numerator, denominator, pre_numerator, pre_denominator)
        found.append(Moments(group.count(), float(mean), max(0.0, float(variance))))
    return found


def _columns(metric: MetricSpec, present: Sequence[str]) -> list[str]:
    """Numerator, denominator, and the same of the pre-period if all of it is there; no denominator of a mean."""
    return [column for column in _roles(metric, present) if column is not None]


def _roles(metric: MetricSpec, present: Sequence[str]) -> tuple[str, str | None, str | None, str | None]:
    below = metric.denominator
    has_pre = all(measure.pre_column in present for measure in metric.measures)
    return (
        metric.numerator.column,
        None if below is None else below.column,
        metric.numerator.pre_column if has_pre else None,
        None if below is None or not has_pre else below.pre_column,
    )
