"""What a search of a policy's weights has found: every trial, the front, its knee, and the best under limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from infnet.evaluation.plain_table import text_table
from infnet.evaluation.policy_evidence import Change

__all__ = ["PolicyFrontier", "Verdict", "WeightTrial"]

Verdict: TypeAlias = Literal["kept", "broken", "open"]

_SHOWN = 20
"""Points of the front in a table."""
_LEAST_EFFECTIVE = 100.0
"""Effective decisions below which an answer is not to be trusted, as of :mod:`infnet.ranking.offpolicy`."""


@dataclass(frozen=True)
class WeightTrial:
    """Weights, and what they earn beside the declared ones; M rewards."""

    exponents: Mapping[str, float]
    """As :class:`infnet.ranking.weight_space.WeightSpace` takes them."""
    weights: tuple[float, ...]
    """(K,) of the policy's objectives."""
    chosen: tuple[float, ...]
    """(M,) changes among the users who choose."""
    reported: tuple[Change, ...]
    """(M,) among those who report."""
    effective: float
    """Effective decisions among these, where weights stand for chances."""


@dataclass(frozen=True)
class PolicyFrontier:
    """The result of :func:`infnet.evaluation.policy_search.search_frontier`; trials go by their place among all."""

    about: str
    """What it rests on."""
    is_sampled: bool
    """Whether the evidence is of pages in random orders."""
    rewards: tuple[str, ...]
    weighed: tuple[str, ...]
    """The policy's objectives."""
    fixed: str
    """The one that keeps its weight."""
    trials: tuple[WeightTrial, ...]
    """Number 0 has the declared weights."""
    front: tuple[int, ...]
    """Trials that no other one dominates among the users who choose, the most of the first reward first."""
    knee: int | None
    goal: str
    """The reward that is raised under limits."""
    limits: Mapping[str, float]
    """By reward the least change."""
    kept: int | None
    """The trial with the most of the goal that keeps the limits."""
    choosing: int
    """Users who choose."""
    reporting: int
    """Users who report."""

    @property
    def marked(self) -> dict[str, int]:
        """Trials with a name: ``declared``, and ``knee`` and ``kept`` if there are."""
        numbers = {"declared": 0, "knee": self.knee, "kept": self.kept}
        return {name: number for name, number in numbers.items() if number is not None}

    def verdict(self, reward: str) -> Verdict:
        """Whether the users who report keep a limit under the choice: surely, surely not, or neither."""
        assert self.kept is not None
        found, least = self.trials[self.kept].reported[self.rewards.index(reward)], self.limits[reward]
        if found.low >= least:
            return "kept"
        return "broken" if found.high < least else "open"

    def doubt(self, number: int) -> str | None:
        """Why what is reported of a trial is not to be trusted; None if it may be."""
        effective = self.trials[number].effective
        if not self.is_sampled or effective >= _LEAST_EFFECTIVE:
            return None
        return f"it rests on some {effective:.0f} decisions, wanted at least {_LEAST_EFFECTIVE:.0f}; log more pages"

    def as_text(self) -> str:
        """A table of the front, and what is to be said of it."""
        lines = [f"Evidence: {self.about}.", self._halves(), ""]
        titles = (*(f"weight {name}" for name in self.weighed), *self.rewards, "")
        shown = self._shown()
        lines += text_table(titles, [self._row(number) for number in shown], left=0)
        lines.append("")
        if len(shown) < len(self.front):
            lines.append(f"{len(shown)} of {len(self.front)} points of the front, evenly along it; the file has all.")
        if any(self._is_worse(self.trials[number]) for number in self.front):
            lines.append(
                "'worse': good luck of those who chose; those who report gain nothing and surely lose something."
            )
        if self.knee is None:
            lines.append("The front has no knee: no point lies beyond the line between its ends.")
        lines += self._choice()
        for name, number in self.marked.items():
            if (doubt := self.doubt(number)) is not None:
                lines.append(f"{name}: not to be trusted: {doubt}")
        return "\n".join(lines).rstrip()

    def as_json(self) -> dict[str, Any]:
        """All of it, None where nothing can be said."""
        return {
            "evidence": self.about,
            "objectives": list(self.rewards),
            "weights_of": list(self.weighed),
            "fixed": self.fixed,
            "users": {"choosing": self.choosing, "reporting": self.reporting},
            "front": list(self.front),
            "knee": self.knee,
            "limits": dict(self.limits),
            "goal": self.goal,
            "kept": self.kept,
            "verdicts": {} if self.kept is None else {name: self.verdict(name) for name in self.limits},
            "trials": [self._trial(trial) for trial in self.trials],
        }

    def _is_worse(self, trial: WeightTrial) -> bool:
        """Whether those who report see nothing gained, and surely something lost."""
        return all(each.value <= 0 for each in trial.reported) and any(each.high < 0 for each in trial.reported)

    def _is_same(self, one: int, other: int) -> bool:
        return self.trials[one].weights == self.trials[other].weights

    def _halves(self) -> str:
        return (
            f"Changes beside the declared policy with 95% intervals, of {self.reporting:,} users; {self.choosing:,} "
            f"others chose the points. '{self.fixed}' keeps its weight, since only ratios matter."
        )

    def _shown(self) -> list[int]:
        """Trials in the table: the front, thinned where it is long, and those that have a name."""
        num = len(self.front)
        even = range(num) if num <= _SHOWN else {round(at * (num - 1) / (_SHOWN - 1)) for at in range(_SHOWN)}
        marked = {self.front.index(number) for number in self.marked.values() if number in self.front}
        shown = [self.front[place] for place in sorted({*even, *marked})]
        return shown if 0 in shown else [*shown, 0]

    def _row(self, number: int) -> list[str]:
        trial = self.trials[number]
        mark = ", ".join(name for name, of in self.marked.items() if self._is_same(of, number))
        if number == 0 and 0 not in self.front:
            mark += " (dominated)"
        elif self._is_worse(trial):
            mark = f"{mark}, worse" if mark else "worse"
        return [*(f"{weight:g}" for weight in trial.weights), *map(_shown, trial.reported), mark]

    def _choice(self) -> list[str]:
        if not self.limits:
            return []
        wanted = ", ".join(f"{name} at {least:+.3g}%" for name, least in _percent(self.limits).items())
        if self.kept is None:
            nearest = ", ".join(f"{name} {change:+.3g}%" for name, change in _percent(self._nearest()).items())
            return [f"No point keeps {wanted} or better among the users who chose; the nearest has {nearest}."]
        said = {"kept": "keep it", "broken": "do not keep it", "open": "cannot tell: the interval holds the limit"}
        verdicts = "; ".join(f"{name}: those who report {said[self.verdict(name)]}" for name in self.limits)
        return [f"'kept' has the most {self.goal} with {wanted} or better among the users who chose. {verdicts}."]

    def _nearest(self) -> dict[str, float]:
        """Changes of the limited rewards at the point of the front that misses its limits least."""
        points = [dict(zip(self.rewards, self.trials[number].chosen, strict=True)) for number in self.front]
        nearest = min(points, key=lambda point: max(least - point[name] for name, least in self.limits.items()))
        return {name: nearest[name] for name in self.limits}

    def _trial(self, trial: WeightTrial) -> dict[str, Any]:
        return {
            "weights": dict(zip(self.weighed, trial.weights, strict=True)),
            "choosing": {name: _finite(value) for name, value in zip(self.rewards, trial.chosen, strict=True)},
            "reporting": {
                name: {"change": _finite(each.value), "low": _finite(each.low), "high": _finite(each.high)}
                for name, each in zip(self.rewards, trial.reported, strict=True)
            },
            "effective_decisions": trial.effective if self.is_sampled else None,
        }


def _percent(limits: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * least for name, least in limits.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(change: Change) -> str:
    if math.isnan(change.value):
        return "undefined"
    value, low, high = (f"{round(each, 4) + 0.0:+.2%}" for each in (change.value, change.low, change.high))
    return f"{value} ({low} to {high})"
