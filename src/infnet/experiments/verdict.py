"""The verdict in words, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from infnet.experiments.analysis import Analysis, Effect

__all__ = ["Outcome", "Verdict", "judge", "percent", "relative_text"]

Outcome = Literal["ship", "do not ship", "keep running", "not to be trusted", "no data"]


@dataclass(frozen=True)
class Verdict:
    """What to do about an experiment."""

    outcome: Outcome
    variant: str | None
    """The one to ship."""
    reasons: list[str]
    """One line each."""


def judge(analysis: Analysis, now: datetime | None = None) -> Verdict:
    """What to do.

    ``ship`` needs a metric that is better and none that is worse, and all guardrails to hold. A metric that is worse or
    a guardrail that is harmed is a ``do not ship``; so is a planned end without a proven gain. A fixed analysis decides
    at its planned end alone.

    Args:
        analysis: The analysis.
        now: Time of the look, with a time zone; past the planned end if None.
    """
    distrust = _distrust(analysis)
    if distrust:
        return Verdict("not to be trusted", None, [*distrust, "no effect is called significant; find the cause first"])
    deciding = [e for e in analysis.effects if not e.metric.is_guardrail]
    if not any(e.compared is not None for e in deciding):
        names = ", ".join(dict.fromkeys(e.metric.name for e in deciding)) or "none is declared"
        return Verdict("no data", None, [f"metrics that decide are undefined or the same for everybody: {names}"])
    end = analysis.experiment.end
    is_over = end is None or now is None or now >= end
    if analysis.settings.looks == "fixed" and not is_over and end is not None:
        waits = f"a fixed analysis is valid at its planned end, {end:%Y-%m-%d %H:%M} UTC; look at sequential intervals"
        return Verdict("keep running", None, [waits])
    verdicts = [_of_variant(analysis, variant, is_over) for variant in dict.fromkeys(e.variant for e in deciding)]
    shipped = [verdict for verdict in verdicts if verdict.outcome == "ship"]
    if shipped:
        return max(shipped, key=lambda verdict: _gain(deciding, verdict.variant))
    outcomes = {verdict.outcome for verdict in verdicts}
    outcome: Outcome = "keep running" if "keep running" in outcomes else "do not ship"
    return Verdict(outcome, None, [reason for verdict in verdicts for reason in verdict.reasons])


def relative_text(effect: Effect) -> str:
    """``+2.1% (0.4% to 3.8%)``, or the two means where nothing relative is defined."""
    found = effect.compared
    if found is None:
        return "no data"
    if found.relative is None:
        return f"{found.control:.4g} -> {found.treatment:.4g}"
    if found.low is None or found.high is None:
        return f"{percent(found.relative)} (unbounded)"
    return f"{percent(found.relative)} ({percent(found.low)} to {percent(found.high)})"


def percent(value: float) -> str:
    """``+2.1%``, with as many digits as it takes to tell it from 0."""
    digits = 1 if abs(value) >= 0.01 else 2
    return f"{value:+.{digits}%}"


def _distrust(analysis: Analysis) -> list[str]:
    reasons = []
    if analysis.is_mismatched:
        weights = analysis.experiment.weights
        shares = ", ".join(f"{name} {n:,} (wanted {weights[name]:.1%})" for name, n in analysis.counts.items())
        reasons.append(f"sample ratio mismatch, p {analysis.srm_p:.2g}: {shares}")
    if analysis.crossed_share > analysis.settings.max_crossed:
        most = analysis.settings.max_crossed
        reasons.append(f"{analysis.crossed_share:.1%} of users were seen in two variants, at most {most:.1%} tolerated")
    return reasons


def _of_variant(analysis: Analysis, variant: str, is_over: bool) -> Verdict:
    own = [e for e in analysis.effects if e.variant == variant]
    states = {state: [e for e in own if e.state == state] for state in ("better", "worse", "harmed", "held")}
    unsure = [e for e in own if e.metric.is_guardrail and e.state in ("unclear", "no data")]
    reasons = [
        *(f"{variant}: {e.metric.name} is worse, {relative_text(e)}" for e in states["worse"]),
        *(
            f"{variant}: guardrail {e.metric.name} is harmed beyond {e.metric.tolerated:.1%}, {relative_text(e)}"
            for e in states["harmed"]
        ),
        *(f"{variant}: {e.metric.name} is better, {relative_text(e)}" for e in states["better"]),
    ]
    if states["worse"] or states["harmed"]:
        return Verdict("do not ship", variant, reasons)
    if states["better"] and not unsure:
        if states["held"]:
            reasons.append(f"{variant}: guardrails hold: {', '.join(e.metric.name for e in states['held'])}")
        return Verdict("ship", variant, reasons)
    reasons += [
        f"{variant}: guardrail {e.metric.name} is not shown to hold within {e.metric.tolerated:.1%}, {relative_text(e)}"
        for e in unsure
    ]
    if not states["better"]:
        open_ = [e for e in own if not e.metric.is_guardrail]
        reasons += [f"{variant}: {e.metric.name} is not told apart from no change, {relative_text(e)}" for e in open_]
    if is_over and analysis.experiment.end is not None:
        lack = "a guardrail that is not shown to hold" if states["better"] else "no proven gain"
        return Verdict("do not ship", variant, [*reasons, f"{variant}: the planned end has come with {lack}"])
    return Verdict("keep running", variant, reasons)


def _gain(effects: Sequence[Effect], variant: str | None) -> float:
    """Relative gain of the first metric that decides, positive if better."""
    for effect in effects:
        if effect.variant == variant and effect.compared is not None and effect.compared.relative is not None:
            return effect.compared.relative * (1 if effect.metric.better == "higher" else -1)
    return 0.0
