"""A treatment beside the control in one metric: effect, interval, p-values; for one look or for any number of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from infnet.experiments.metrics import MetricSpec
from infnet.experiments.moments import Moments, moments, tea_metric, usable_columns
from infnet.experiments.sequential import sequential_half_width, sequential_p
from infnet.experiments.settings import AnalysisSettings

__all__ = ["Comparison", "compare", "fieller"]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Comparison:
    """Of one treatment with the control; relative figures are None where the control's mean is not over 0."""

    control: float
    """Mean or ratio, adjusted by the pre-period."""
    treatment: float
    relative: float | None
    """``treatment / control - 1``."""
    low: float | None
    """Of the relative effect's interval at level 1 - alpha; None if unbounded."""
    high: float | None
    p_value: float
    """Of no difference, two-sided."""
    p_held: float | None = None
    """Of a guardrail: of harm beyond its margin, against which it is to be shown that it held."""
    p_harmed: float | None = None
    """Of a guardrail: of harm within its margin, against which it is to be shown that it was harmed."""
    narrowed: float = 1.0
    """Width of the interval beside that without the pre-period."""


def compare(
    metric: MetricSpec, control: Any, treatment: Any, columns: Sequence[str], settings: AnalysisSettings
) -> Comparison | None:
    """Compare two variants (``tea_tasting.aggr.Aggregates``); None if the data say nothing about the metric.

    Args:
        metric: The metric.
        control: The control's aggregates.
        treatment: The treatment's.
        columns: Of the user table; those of the pre-period are used if they are there.
        settings: Level, and how often one looks.
    """
    usable = usable_columns(metric, (control, treatment), columns)
    if usable is None:
        return None
    c, t = moments(metric, (control, treatment), usable)
    variance = c.squared_error + t.squared_error
    if not (c.has_spread or t.has_spread):
        return _never(metric, c, t)
    raw = sum(m.squared_error for m in moments(metric, (control, treatment), _without_pre(metric, usable)))
    if settings.looks == "fixed":
        found = tea_metric(metric, usable, confidence_level=1 - settings.alpha).analyze_aggregates(control, treatment)
        p_value = float(found.pvalue)
        critical = (found.effect_size_ci_upper - found.effect_size) / math.sqrt(variance)
    else:
        mixing = _mixing(c, t, settings)
        p_value = sequential_p(t.mean - c.mean, variance, mixing)
        critical = sequential_half_width(variance, mixing, settings.alpha) / math.sqrt(variance)
    if not math.isfinite(p_value):
        return None
    low, high = fieller(c, t, critical)
    held = harmed = None
    if metric.is_guardrail:
        held, harmed = _guarded(metric, c, t, settings)
    return Comparison(
        control=c.mean,
        treatment=t.mean,
        relative=t.mean / c.mean - 1 if c.mean > 0 else None,
        low=low,
        high=high,
        p_value=p_value,
        p_held=held,
        p_harmed=harmed,
        narrowed=math.sqrt(variance / raw) if raw > 0 else 1.0,
    )


def _never(metric: MetricSpec, control: Moments, treatment: Moments) -> Comparison | None:
    """Of a guardrail against what never happened to anybody: it holds."""
    if not metric.is_guardrail or metric.better == "higher" or control.mean != 0 or treatment.mean != 0:
        return None
    return Comparison(0.0, 0.0, relative=None, low=None, high=None, p_value=1.0, p_held=0.0, p_harmed=1.0, narrowed=1.0)


def fieller(control: Moments, treatment: Moments, critical: float) -> tuple[float | None, float | None]:
    """Interval of ``treatment / control - 1``; both None if the control's mean is not clearly over 0.

    E. C. Fieller, "Some Problems in Interval Estimation", Journal of the Royal Statistical Society B 16 (1954), for
    independent means.

    Args:
        control: Denominator.
        treatment: Numerator.
        critical: Half the width of an interval in standard errors, such as 1.96.
    """
    c, t, squared = control.mean, treatment.mean, critical**2
    below = c * c - squared * control.squared_error
    if c <= 0 or below <= 0:
        return None, None
    root = math.sqrt(max(0.0, (c * t) ** 2 - below * (t * t - squared * treatment.squared_error)))
    return (c * t - root) / below - 1, (c * t + root) / below - 1


def _guarded(metric: MetricSpec, c: Moments, t: Moments, settings: AnalysisSettings) -> tuple[float, float]:
    """P-values against the margin, one-sided: non-inferiority, and its opposite."""
    sign = 1 if metric.better == "higher" else -1
    bound = 1 - math.copysign(metric.tolerated, sign * c.mean)  # of treatment / control
    spared = sign * (t.mean - bound * c.mean)  # below 0: harm beyond the margin
    variance = t.squared_error + bound**2 * c.squared_error
    if settings.looks == "fixed":
        held = _NORMAL.cdf(-spared / math.sqrt(variance))
        return held, 1 - held
    p = sequential_p(spared, variance, _mixing(c, t, settings))
    return (p, 1.0) if spared > 0 else (1.0, p)


def _mixing(control: Moments, treatment: Moments, settings: AnalysisSettings) -> float:
    """Variance of the effects that are looked for, in the metric's unit."""
    scale = abs(control.mean) or abs(treatment.mean) or 1.0
    return (settings.expected_effect * scale) ** 2


def _without_pre(metric: MetricSpec, columns: Sequence[str]) -> list[str]:
    own = {measure.pre_column for measure in metric.measures}
    return [column for column in columns if column not in own]
