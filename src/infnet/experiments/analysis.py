"""An experiment, analysed: can it be trusted, what changed, for whom, and how that came about day by day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from infnet.evaluation.significance import holm
from infnet.experiments.comparison import Comparison, compare
from infnet.experiments.metrics import PRE_PERIOD, MetricSpec
from infnet.experiments.moments import aggregates, load_tea_tasting
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import DAY_MS, UserTable

__all__ = ["Analysis", "DayEffect", "Effect", "State", "analyse", "daily_effects", "sample_ratio_p"]

State = Literal["better", "worse", "unclear", "held", "harmed", "no data", "not to be trusted"]
"""``held`` and ``harmed`` are a guardrail's: harm beyond its margin is ruled out, or is shown."""


@dataclass(frozen=True)
class Effect:
    """Of one treatment on one metric, for all users or those of a segment."""

    metric: MetricSpec
    variant: str
    state: State
    compared: Comparison | None = None
    """None if there is no data."""
    corrected_p: float | None = None
    """Holm's, within the family that decides: metrics (not guardrails) and treatments; of segments, all segments too.
    None where nothing is to be called significant."""
    segment: tuple[str, str] | None = None
    """Column and value."""
    users: int = 0
    """Of the control and the treatment."""


@dataclass(frozen=True)
class DayEffect:
    """A relative effect of everything up to the end of a day."""

    day: int
    """Days since 1970, UTC."""
    fixed: Comparison
    sequential: Comparison


@dataclass(frozen=True)
class Analysis:
    """Of one experiment."""

    experiment: Experiment
    settings: AnalysisSettings
    table: UserTable
    counts: dict[str, int]
    """Users by variant."""
    srm_p: float
    """Of the users' shares being those that were declared."""
    effects: list[Effect]
    segments: list[Effect]

    @property
    def is_mismatched(self) -> bool:
        """Whether the sample ratio is not what was declared."""
        return self.srm_p < self.settings.srm_alpha

    @property
    def crossed_share(self) -> float:
        """Share of users who were seen in two variants."""
        return self.table.crossed / max(1, self.table.crossed + sum(self.counts.values()))

    @property
    def is_trusted(self) -> bool:
        """Whether who was seen in which variant is as chance would have it."""
        return not self.is_mismatched and self.crossed_share <= self.settings.max_crossed


def analyse(
    table: UserTable,
    experiment: Experiment,
    metrics: Sequence[MetricSpec],
    settings: AnalysisSettings | None = None,
    *,
    segments: Sequence[str] = (),
) -> Analysis:
    """Compare every treatment with the control in every metric.

    Raises:
        DataError: A variant has no users.
        SpecError: tea-tasting is not installed.
    """
    settings = settings or AnalysisSettings()
    table.check_variants(experiment)
    counts = table.counts(experiment)
    treatments = [name for name in experiment.weights if name != experiment.resolved_control]
    pairs = [(metric, variant) for variant in treatments for metric in metrics]
    analysis = Analysis(experiment, settings, table, counts, sample_ratio_p(experiment, counts), [], [])
    analysis.effects.extend(_judged(analysis, _compared(table.users, experiment, pairs, settings, None)))
    deciding = [pair for pair in pairs if not pair[0].is_guardrail]
    found = [
        effect
        for segment, rows in _segments(table.users, segments, settings.max_segment_values)
        for effect in _compared(rows, experiment, deciding, settings, segment)
    ]
    analysis.segments.extend(_judged(analysis, found))
    return analysis


def sample_ratio_p(experiment: Experiment, counts: dict[str, int]) -> float:
    """P-value of the users' shares being those declared: the least of all treatments beside the control, times their
    number.

    A. Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments", KDD 2019.
    """
    tea = load_tea_tasting()
    control, weights = experiment.resolved_control, experiment.weights
    groups = {name: tea.aggr.Aggregates(count_=count) for name, count in counts.items()}
    treatments = [name for name in weights if name != control]
    found = [tea.SampleRatio(weights).analyze(groups, control, name).pvalue for name in treatments]
    return min(1.0, len(found) * min(found))


def daily_effects(analysis: Analysis, metric: MetricSpec, variant: str) -> list[DayEffect]:
    """The effect of everything up to the end of each day, of users exposed by then; empty without an event log."""
    table, days = analysis.table, analysis.table.days
    if days is None or not days.height:
        return []
    control = analysis.experiment.resolved_control
    users = table.users.filter(pl.col("variant").is_in([control, variant])).sort("first_ms", "user_id")
    columns = [measure.column for measure in metric.measures]
    place = users.select("user_id", row=pl.int_range(pl.len()))
    rows = days.select("user_id", "day", *columns).join(place, on="user_id").sort("day", "row")
    first_day = (users["first_ms"] // DAY_MS).to_numpy()
    sums, found = np.zeros((users.height, len(columns))), list[DayEffect]()
    for today in rows.partition_by("day", maintain_order=True):
        day = int(today["day"][0])
        sums[today["row"].to_numpy()] += today.select(columns).to_numpy()  # a user has one row a day
        seen = int(np.searchsorted(first_day, day, side="right"))
        until = users[:seen].with_columns(pl.Series(name, sums[:seen, i]) for i, name in enumerate(columns))
        both = [
            effect.compared
            for looks in ("fixed", "sequential")
            for effect in _compared(
                until,
                analysis.experiment,
                [(metric, variant)],
                analysis.settings.model_copy(update={"looks": looks}),
                None,
            )
        ]
        if both[0] is not None and both[1] is not None:
            found.append(DayEffect(day, both[0], both[1]))
    return found


def _compared(
    users: pl.DataFrame,
    experiment: Experiment,
    pairs: Sequence[tuple[MetricSpec, str]],
    settings: AnalysisSettings,
    segment: tuple[str, str] | None,
) -> list[Effect]:
    """Effects that are not judged yet."""
    if not settings.cuped:
        users = users.select(~pl.selectors.ends_with(PRE_PERIOD))
    groups: dict[str, Any] = aggregates(users, list({m.name: m for m, _ in pairs}.values())) if users.height else {}
    control, effects = groups.get(experiment.resolved_control), []
    for metric, variant in pairs:
        treatment, compared, number = groups.get(variant), None, 0
        if control is not None and treatment is not None:
            compared = compare(metric, control, treatment, users.columns, settings)
            number = control.count() + treatment.count()
        effects.append(Effect(metric, variant, "unclear", compared, None, segment, number))
    return effects


def _judged(analysis: Analysis, effects: Sequence[Effect]) -> Iterator[Effect]:
    """With corrected p-values and states: one family for what decides, one for harm to guardrails."""
    corrected: dict[int, float] = {}
    for is_guardrail in (False, True):
        family = [
            (i, e.compared.p_harmed if is_guardrail else e.compared.p_value)
            for i, e in enumerate(effects)
            if e.compared is not None and e.metric.is_guardrail is is_guardrail
        ]
        p_values = holm([1.0 if p is None else p for _, p in family])
        corrected |= dict(zip((i for i, _ in family), p_values, strict=True))
    for index, effect in enumerate(effects):
        p = corrected.get(index) if analysis.is_trusted else None
        state = _state(effect, p, analysis)
        yield Effect(effect.metric, effect.variant, state, effect.compared, p, effect.segment, effect.users)


def _state(effect: Effect, p: float | None, analysis: Analysis) -> State:
    found, alpha = effect.compared, analysis.settings.alpha
    if found is None:
        return "no data"
    if p is None:
        return "not to be trusted"
    if effect.metric.is_guardrail:
        if p < alpha:
            return "harmed"
        # Every guardrail has to hold, so that none of them needs a correction.
        return "held" if found.p_held is not None and found.p_held < alpha else "unclear"
    if p >= alpha:
        return "unclear"
    return "better" if (found.treatment > found.control) == (effect.metric.better == "higher") else "worse"


def _segments(users: pl.DataFrame, columns: Sequence[str], most: int) -> Iterator[tuple[tuple[str, str], pl.DataFrame]]:
    """Users by segment, those with the most users first."""
    for column in columns:
        sizes = users.group_by(column).len().sort("len", column, descending=[True, False]).head(most)
        for value in sizes[column]:
            yield (column, str(value)), users.filter(pl.col(column).eq_missing(value))
