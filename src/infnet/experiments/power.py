"""Before an experiment: how small an effect it can find, how many users it needs, and how many days that takes.

A variant needs ``2 (z_{1 - alpha / 2} + z_power)^2 variance / difference^2`` users, alpha being shared by all metrics
that decide and by all treatments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict, Field

from infnet.errors import DataError
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import MetricSpec
from infnet.experiments.moments import aggregates, moments, usable_columns
from infnet.experiments.user_table import DAY_MS, UserTable, user_table

__all__ = ["Plan", "PowerSettings", "Window", "plan", "plan_from_log"]

_WINDOWS = (1, 2, 3, 5, 7, 10, 14, 21, 28)
_NORMAL = NormalDist()


class PowerSettings(BaseModel):
    """The experiment that is planned, analysed once at its end; sequential intervals are some 1.6 times as wide."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    effect: float = Field(default=0.02, gt=0)
    """Relative effect that is to be found."""
    num_variants: int = Field(default=2, ge=2)
    """The control included; of equal shares."""
    coverage: float = Field(default=1.0, gt=0, le=1)
    """Share of all users."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, gt=0, lt=1)
    """Chance of finding the effect."""
    pre_days: float = Field(default=7.0, ge=0)


@dataclass(frozen=True)
class Window:
    """What an experiment of so many days would have seen."""

    days: int | None
    """None if it is not known."""
    users: int
    """In the experiment."""
    detectable: float
    """Relative effect that it finds with the wanted power."""


@dataclass(frozen=True)
class Plan:
    """Of one metric."""

    metric: MetricSpec
    mean: float
    windows: list[Window]
    """By days, ascending."""
    needed_users: int
    """In the experiment, for the wanted effect."""
    needed_days: int | None
    """For the wanted effect; beyond the history by its rate of new users. None if it is out of reach or not known."""


def plan(table: UserTable, metrics: Sequence[MetricSpec], settings: PowerSettings) -> list[Plan]:
    """From one history, such as a ready table; nothing is known about days.

    Raises:
        DataError: A metric is undefined or the same for everybody.
    """
    return _plans({None: table}, metrics, settings)


def plan_from_log(log: ExperimentLog, metrics: Sequence[MetricSpec], settings: PowerSettings) -> list[Plan]:
    """From the last days of an event log: windows of several lengths, each as an experiment would have seen it.

    A history of at least twice the pre-period leaves one before the longest window.

    The log is read with no experiment (:meth:`ExperimentLog.read`).

    Raises:
        DataError: A metric is undefined or the same for everybody.
    """
    times = log.requests["time_ms"].to_numpy()
    span = max(1, round(float(times.max() - times.min()) / DAY_MS))
    reach = span - settings.pre_days if span >= 2 * settings.pre_days else span
    tables: dict[int | None, UserTable] = {}
    for days in _WINDOWS:
        if days <= max(1, reach):
            since_ms = int(times.max()) - days * DAY_MS + 1
            tables[days] = user_table(log, None, metrics, pre_days=settings.pre_days, since_ms=since_ms)
    return _plans(tables, metrics, settings)


def _plans(
    tables: Mapping[int | None, UserTable], metrics: Sequence[MetricSpec], settings: PowerSettings
) -> list[Plan]:
    alpha = settings.alpha / (sum(not m.is_guardrail for m in metrics) or 1) / (settings.num_variants - 1)
    quantiles = _NORMAL.inv_cdf(1 - alpha / 2) + _NORMAL.inv_cdf(settings.power)
    groups = {days: (table, aggregates(table.users, metrics)["all"]) for days, table in tables.items()}
    plans = []
    for metric in metrics:
        windows, needed, mean = list[Window](), 0, 0.0
        for days, (table, group) in groups.items():
            usable = usable_columns(metric, [group], table.users.columns)
            found = None if usable is None else moments(metric, [group], usable)[0]
            if found is None or not found.has_spread or not found.mean:
                continue  # such as days with a request, of a single day
            mean, deviation = found.mean, math.sqrt(found.variance) / abs(found.mean)
            reached = int(table.users.height * settings.coverage)
            per_variant = max(1.0, reached / settings.num_variants)
            windows.append(Window(days, reached, quantiles * deviation * math.sqrt(2 / per_variant)))
            needed = settings.num_variants * math.ceil(2 * (quantiles * deviation / settings.effect) ** 2)
        if not windows:
            source = next(iter(tables.values())).source
            raise DataError(
                f"{source}: metric '{metric.name}' ({metric.formula}) is undefined or the same for everybody; "
                "take one that varies, or a longer history"
            )
        plans.append(Plan(metric, mean, windows, needed, _days(windows, needed, settings.effect)))
    return plans


def _days(windows: Sequence[Window], needed: int, effect: float) -> int | None:
    """The first window that finds the effect; beyond all of them by the new users of the last ones."""
    for window in windows:
        if window.detectable <= effect:
            return window.days
    if len(windows) < 2 or windows[-1].days is None or windows[-2].days is None:
        return None
    last, before = windows[-1], windows[-2]
    new_per_day = (last.users - before.users) / (windows[-1].days - windows[-2].days)
    if new_per_day <= 0:
        return None
    return windows[-1].days + max(1, int(-(-(needed - last.users) // new_per_day)))
