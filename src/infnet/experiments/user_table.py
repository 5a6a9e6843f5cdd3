"""One row per user: the variant, what he did since he first met it, and what he did before."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from infnet.errors import DataError
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import LOG_MEASURES, PRE_PERIOD, RESERVED, Measure, MetricSpec
from infnet.experiments.spec import Experiment
from infnet.serving.events import IMPRESSION

__all__ = ["DAY_MS", "UserTable", "user_table"]

DAY_MS = 86_400_000


@dataclass(frozen=True)
class UserTable:
    """What an analysis reads.

    A user counts from the first request that was answered under the experiment, with all he did since, on whatever day
    and page: whom a change drives away is not lost from sight.
    """

    source: Path
    users: pl.DataFrame
    """``user_id, variant``, a column per measure (:attr:`Measure.column`), the same of the pre-period where it is known
    (:attr:`Measure.pre_column`), a text column per segment, and of an event log ``first_ms``."""
    days: pl.DataFrame | None = None
    """Of an event log: ``user_id, day`` (since 1970, UTC) and the measures of that day alone."""
    crossed: int = 0
    """Users who were seen in two variants, left out."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Users by variant that the experiment does not have, left out."""
    forced: int = 0
    """Users whose variant was not left to chance, left out."""
    damaged: int = 0
    """Lines of the log that cannot be read."""
    strayed: int = 0
    """Events of the log of which nothing says whose they are."""

    def counts(self, experiment: Experiment) -> dict[str, int]:
        """Users by variant, in the order of the declaration."""
        found = dict(self.users.group_by("variant").len().iter_rows())
        return {name: found.get(name, 0) for name in experiment.weights}

    def check_variants(self, experiment: Experiment) -> None:
        """See that every variant has users.

        Raises:
            DataError: One has none.
        """
        counts = self.counts(experiment)
        for name, count in counts.items():
            if not count:
                others = ", ".join(f"{other} {number:,}" for other, number in counts.items() if other != name)
                raise DataError(
                    f"{self.source}: variant '{name}' of '{experiment.name}' has no users ({others}); "
                    "wait for some, or mend its weight, its policy or its name"
                )


def user_table(
    log: ExperimentLog,
    experiment: Experiment | None,
    metrics: Sequence[MetricSpec],
    *,
    segments: Sequence[str] = (),
    pre_days: float = 7.0,
    since_ms: int | None = None,
) -> UserTable:
    """Users of an experiment, from an event log; with no experiment all users, in the variant ``all``.

    Args:
        log: Read with the same segments.
        experiment: Its variants, start, end and forced users.
        metrics: Whose measures are wanted.
        segments: A user is in that of his first request under the experiment.
        pre_days: How many days before the first exposure make up the pre-period.
        since_ms: No request before it is an exposure; the experiment's start by default.

    Raises:
        DataError: Nobody is in the experiment, or a metric counts events that the log has none of although others come
            near its name.
    """
    measures = list({m.column: m for metric in metrics for m in metric.measures}.values())
    _check_types(log, measures)
    _check_segments(log, segments, measures)
    if since_ms is None and experiment is not None and experiment.start is not None:
        since_ms = int(experiment.start.timestamp() * 1000)
    end_ms = None if experiment is None or experiment.end is None else experiment.end.timestamp() * 1000
    requests = log.requests if end_ms is None else log.requests.filter(pl.col("time_ms") < end_ms)
    events = log.events if end_ms is None else log.events.filter(pl.col("time_ms") < end_ms)
    under = requests.filter(pl.col("variant").is_not_null())
    if since_ms is not None:
        under = under.filter(pl.col("time_ms") >= since_ms)
    exposed = _exposed(under, segments)
    kept, crossed, unknown, forced = _sorted_out(exposed, experiment)
    if not kept.height and not crossed and not unknown:
        who = " but forced ones" if forced else ""
        where = "" if experiment is None else f" under '{experiment.name}'"
        raise DataError(f"{log.directory}: no user{who} was served{where} between its start and its end; check both")
    daily = _daily(requests, events, kept, measures, pre_days)
    columns = [m.column for m in measures]
    sums = daily.group_by("user_id").agg(
        *(pl.col(c).filter(pl.col("is_after")).sum() for c in columns),
        *(pl.col(c).filter(~pl.col("is_after")).sum().name.suffix(PRE_PERIOD) for c in columns),
    )
    users = kept.join(sums, on="user_id", how="left", maintain_order="left").with_columns(
        pl.col(columns + [c + PRE_PERIOD for c in columns]).fill_null(0.0)
    )
    days = daily.filter("is_after").select("user_id", "day", *columns).sort("day", "user_id")
    return UserTable(log.directory, users, days, crossed, unknown, forced, log.damaged, log.strayed)


def _check_types(log: ExperimentLog, measures: Sequence[Measure]) -> None:
    """An event type that never occurs may be rare, but one that is nearly another is misspelt."""
    known = {*log.event_types, IMPRESSION, *LOG_MEASURES}
    for measure in measures:
        if measure.is_of_events and measure.event not in known:
            # Stricter than other suggestions: dislike is not like.
            for near in difflib.get_close_matches(measure.event, sorted(known), n=1, cutoff=0.8):
                raise DataError(f"{log.directory}: no event is of type '{measure.event}'; did you mean '{near}'?")


def _check_segments(log: ExperimentLog, segments: Sequence[str], measures: Sequence[Measure]) -> None:
    taken = {*RESERVED, *(c for m in measures for c in (m.column, m.pre_column))}
    for name in segments:
        if name in taken:
            raise DataError(f"{log.directory}: segment '{name}' has the name of another column; split by another value")


def _exposed(under: pl.DataFrame, segments: Sequence[str]) -> pl.DataFrame:
    """Per user the first request under the experiment, and all variants seen."""
    order = ("time_ms", "request_id")
    return (
        under.lazy()
        .group_by("user_id")
        .agg(
            first_ms=pl.col("time_ms").min(),
            variants=pl.col("variant").unique().sort(),
            variant=pl.col("variant").sort_by(*order).first(),
            **{name: pl.col(f"segment:{name}").sort_by(*order).first().fill_null("(none)") for name in segments},
        )
        .sort("user_id")
        .collect()
    )


def _sorted_out(exposed: pl.DataFrame, experiment: Experiment | None) -> tuple[pl.DataFrame, int, dict[str, int], int]:
    """Users that count, and how many do not for which reason."""
    if experiment is None:
        return exposed.drop("variants"), 0, {}, 0
    known = list(experiment.weights)
    is_forced = pl.col("user_id").is_in(list(experiment.forced))
    strange = pl.col("variants").list.set_difference(pl.lit(known, dtype=pl.List(pl.String)))
    chosen = exposed.filter(~is_forced)
    lost = chosen.filter(strange.list.len() > 0).select(strange.alias("variant")).explode("variant")
    chosen = chosen.filter(strange.list.len() == 0)
    is_crossed = pl.col("variants").list.len() > 1
    kept = chosen.filter(~is_crossed).drop("variants")
    unknown = dict(lost.group_by("variant").len().sort("variant").iter_rows())
    return kept, chosen.height - kept.height, unknown, exposed.filter(is_forced).height


def _daily(
    requests: pl.DataFrame, events: pl.DataFrame, kept: pl.DataFrame, measures: Sequence[Measure], pre_days: float
) -> pl.DataFrame:
    """``user_id, day, is_after`` and the measures of it, of the users that count."""
    first = kept.lazy().select("user_id", "first_ms")
    key = ("user_id", "day", "is_after")

    def placed(frame: pl.DataFrame) -> pl.LazyFrame:
        """Rows of these users since the pre-period, with their day and whether they are after the first exposure."""
        return (
            frame.lazy()
            .join(first, on="user_id")
            .filter(pl.col("time_ms") >= pl.col("first_ms") - int(pre_days * DAY_MS))
            .with_columns(day=pl.col("time_ms") // DAY_MS, is_after=pl.col("time_ms") >= pl.col("first_ms"))
        )

    visits = placed(requests)
    # What was before the first exposure knows nothing of a return after it.
    came_back = pl.concat(
        visits.filter(is_known).select("user_id", pl.col("day") - 1, is_after=pl.lit(is_after), came_back=pl.lit(1.0))
        for is_after, is_known in ((True, pl.lit(True)), (False, pl.col("time_ms") <= pl.col("first_ms")))
    ).unique()
    of_requests = (
        visits.group_by(key)
        .agg(
            requests=pl.len().cast(pl.Float64),
            degraded=pl.col("is_degraded").sum().cast(pl.Float64),
            latency_ms=pl.col("took_ms").sum(),
        )
        .join(came_back, on=key, how="left")
        .with_columns(active_days=pl.lit(1.0), returned_next_day=pl.col("came_back").fill_null(0.0))
    )
    sums = {m.column: _event_sum(m) for m in measures if m.is_of_events or m.event == "impressions"}
    of_events = placed(events).group_by(key).agg(**sums)
    both = pl.concat([of_requests, of_events], how="diagonal_relaxed")
    columns = [m.column for m in measures]
    return both.group_by(key).agg(pl.col(columns).sum()).sort(key).collect()


def _event_sum(measure: Measure) -> pl.Expr:
    kind = measure.event if measure.is_of_events else IMPRESSION
    value = pl.col("value")
    amount = value if measure.sum == "value" else (value > 0).cast(pl.Float64)  # 0: it did not happen
    return pl.when(pl.col("type") == kind).then(amount).otherwise(0.0).sum()
