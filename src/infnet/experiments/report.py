"""An analysis to read: as text, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from infnet.evaluation.plain_table import text_table
from infnet.experiments.analysis import Analysis, DayEffect, Effect
from infnet.experiments.power import Plan
from infnet.experiments.verdict import Verdict, percent, relative_text

__all__ = [
    "Daily",
    "as_json",
    "as_text",
    "effect_cells",
    "effect_titles",
    "facts",
    "headline",
    "plan_as_text",
]

Daily = Mapping[tuple[str, str], Sequence[DayEffect]]
"""By metric and variant."""


def as_text(analysis: Analysis, verdict: Verdict) -> str:
    """Verdict, users, effects and segments."""
    lines = [headline(analysis, verdict), *(f"  - {reason}" for reason in verdict.reasons), "", *facts(analysis), ""]
    lines += text_table(effect_titles(analysis), [effect_cells(effect) for effect in analysis.effects], left=2)
    if analysis.segments:
        rows = [[*(e.segment or ("", "")), *effect_cells(e)] for e in analysis.segments]
        lines += ["", *text_table(("segment", "value", *effect_titles(analysis)), rows, left=4)]
    return "\n".join(lines)


def headline(analysis: Analysis, verdict: Verdict) -> str:
    """``diversity: ship mmr``."""
    return f"{analysis.experiment.name}: {verdict.outcome} {verdict.variant or ''}".rstrip()


def facts(analysis: Analysis) -> list[str]:
    """Who was counted and how, a line each."""
    table, settings = analysis.table, analysis.settings
    weights, total = analysis.experiment.weights, sum(analysis.counts.values())
    shares = ", ".join(f"{name} {n:,} ({n / total:.2%} of {weights[name]:.2%})" for name, n in analysis.counts.items())
    lines = [f"Users: {shares}; sample ratio p {_p(analysis.srm_p)}"]
    left_out = [
        *([f"{table.crossed:,} users seen in two variants ({analysis.crossed_share:.2%})"] if table.crossed else []),
        *(f"{count:,} users of the unknown variant '{name}'" for name, count in table.unknown.items()),
        *([f"{table.forced:,} forced users"] if table.forced else []),
        *([f"{table.damaged:,} damaged lines of the log"] if table.damaged else []),
        *([f"{table.strayed:,} events of nobody knows whom"] if table.strayed else []),
    ]
    if left_out:
        lines.append(f"Left out: {'; '.join(left_out)}")
    how = "valid at any number of looks" if settings.looks == "sequential" else "valid for one look"
    adjusted = [e.compared.narrowed for e in analysis.effects if e.compared is not None and e.compared.narrowed < 1]
    cuped = f"; the pre-period narrows them to {min(adjusted):.0%} at best" if adjusted else ""
    lines.append(f"Intervals: {1 - settings.alpha:.0%}, {settings.looks}, {how}{cuped}")
    return lines


def effect_titles(analysis: Analysis) -> list[str]:
    """Headings of :func:`effect_cells`."""
    level = f"{1 - analysis.settings.alpha:.0%}"
    return ["metric", "variant", "control", "treatment", f"change ({level})", "p corrected", "result"]


def effect_cells(effect: Effect) -> list[str]:
    """A row of the table of effects."""
    found = effect.compared
    means = ["", ""] if found is None else [f"{found.control:.4g}", f"{found.treatment:.4g}"]
    change = "" if found is None else relative_text(effect)
    result = f"guardrail, {effect.state}" if effect.metric.is_guardrail else effect.state
    return [effect.metric.name, effect.variant, *means, change, _p(effect.corrected_p), result]


def as_json(analysis: Analysis, verdict: Verdict, daily: Daily) -> dict[str, Any]:
    """All of it; numbers are None where they are undefined or where nothing is to be called significant."""
    table = analysis.table
    return {
        "experiment": analysis.experiment.name,
        "outcome": verdict.outcome,
        "variant": verdict.variant,
        "reasons": verdict.reasons,
        "control": analysis.experiment.resolved_control,
        "looks": analysis.settings.looks,
        "users": analysis.counts,
        "sample_ratio_p": analysis.srm_p,
        "is_trusted": analysis.is_trusted,
        "crossed": table.crossed,
        "unknown": table.unknown,
        "forced": table.forced,
        "damaged": table.damaged,
        "strayed": table.strayed,
        "effects": [_effect(e, analysis.is_trusted) for e in analysis.effects],
        "segments": [
            dict(zip(("segment", "value"), e.segment or ("", ""), strict=True)) | _effect(e, analysis.is_trusted)
            for e in analysis.segments
        ],
        "daily": [
            {"metric": metric, "variant": variant, "day": effect.day} | dict(_bounds(effect))
            for (metric, variant), effects in daily.items()
            for effect in effects
        ],
    }


def plan_as_text(plans: Sequence[Plan], effect: float) -> str:
    """What an experiment can find, by metric and length."""
    rows = [
        [
            plan.metric.name if index == 0 else "",
            f"{plan.mean:.4g}" if index == 0 else "",
            "" if window.days is None else str(window.days),
            f"{window.users:,}",
            f"{window.detectable:.2%}",
        ]
        for plan in plans
        for index, window in enumerate(plan.windows)
    ]
    lines = text_table(("metric", "mean", "days", "users", "detectable"), rows)
    return "\n".join([*lines, "", *(_needs(plan, effect) for plan in plans)])


def _needs(plan: Plan, effect: float) -> str:
    if plan.needed_days is None:
        when = "" if plan.windows[0].days is None else "; more than ever come at this traffic"
    else:
        when = f", about {plan.needed_days:,} days" if plan.needed_days > 1 else ", a day"
    return f"{plan.metric.name}: {percent(effect)} needs {plan.needed_users:,} users{when}"


def _effect(effect: Effect, is_trusted: bool) -> dict[str, Any]:
    found = {} if effect.compared is None else asdict(effect.compared)
    if not is_trusted:
        found |= dict.fromkeys(("p_value", "p_held", "p_harmed"))
    return {
        "metric": effect.metric.name,
        "formula": effect.metric.formula,
        "better": effect.metric.better,
        "is_guardrail": effect.metric.is_guardrail,
        "variant": effect.variant,
        "state": effect.state,
        "users": effect.users,
        "corrected_p": effect.corrected_p,
        **found,
    }


def _bounds(effect: DayEffect) -> Iterator[tuple[str, float | None]]:
    yield "relative", effect.fixed.relative
    for name, found in (("fixed", effect.fixed), ("sequential", effect.sequential)):
        yield f"{name}_low", found.low
        yield f"{name}_high", found.high


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
