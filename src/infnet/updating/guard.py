"""Whether a candidate may take the live model's place: both judged on held-out requests, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.data.layout import TaskLayout
from infnet.errors import TrainingError
from infnet.evaluation.calibration import LOG_LOSS_EPS
from infnet.evaluation.predictions import Predictions

__all__ = ["GuardError", "GuardSettings", "Judgement", "Measured", "Unsure", "Verdict", "judge"]

Unsure: TypeAlias = Literal["careful", "accept", "refuse"]
"""What to do when there are too few rows to tell better from worse: take one standard error for noise, go on in any
case, or stay with the live model in any case."""


class GuardError(TrainingError):
    """The candidate is worse than the live model, or its probabilities are wrong as numbers. Exit code 1."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True)
class GuardSettings:
    """When a candidate is refused."""

    loss_tolerance: float = 0.005
    """How much worse its loss may be, as a share of the live model's."""
    auc_tolerance: float = 0.002
    """How much lower its AUC may be."""
    calibration: tuple[float, float] = (0.8, 1.25)
    """Within which mean prob / mean label has to lie."""
    errors: float = 3.0
    """Standard errors that count as noise: a loop looks at many numbers in a row, and of so far off chance shows one in
    a thousand."""
    least_rows: int = 200
    """With fewer labels of a task, or fewer than 10 of either kind, its numbers are too noisy to judge by."""
    when_unsure: Unsure = "careful"


@dataclass(frozen=True)
class Measured:
    """A number of both models, and the difference with its standard error, users taken as wholes."""

    live: float
    candidate: float
    difference: float
    """Candidate less live, on the same rows."""
    error: float


@dataclass(frozen=True)
class Judgement:
    """One task."""

    task: str
    rows: int
    positives: int | None
    """None for a regression."""
    loss: Measured
    """Log loss; of a regression, the squared error in standard deviations of the label."""
    auc: Measured | None
    """None for a regression, and where labels are of one kind."""
    calibration: Measured | None
    """Mean prob / mean label, with the candidate's own standard error; None where there is no positive."""
    is_sure: bool
    """Whether there are rows enough to judge by."""


@dataclass(frozen=True)
class Verdict:
    """What the guard found."""

    accepted: bool
    rows: int
    """Held out."""
    is_sure: bool
    """Whether every task could be judged."""
    reasons: tuple[str, ...]
    """Why not."""
    tasks: tuple[Judgement, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, None for what is no number."""
        return {
            "accepted": self.accepted,
            "rows": self.rows,
            "is_sure": self.is_sure,
            "reasons": list(self.reasons),
            "tasks": {judgement.task: _plain(asdict(judgement)) for judgement in self.tasks},
        }


def judge(
    live: Predictions,
    candidate: Predictions,
    tasks: tuple[TaskLayout, ...],
    users: NDArray[np.generic],
    settings: GuardSettings,
) -> Verdict:
    """Compare two models on held-out rows.

    A task is worse when its loss is higher, or its AUC lower, by more than the tolerance and by more than noise; it is
    uncalibrated when mean prob / mean label lies outside the bounds by more than noise, unless the live model is at
    least as far off. Where rows are too few, :attr:`GuardSettings.when_unsure` decides.

    Args:
        live, candidate: Predictions (n, T) of the same rows.
        tasks: (T,).
        users: (n,) whose row each is: rows of one user are alike, and tell less than those of as many users.
        settings: Tolerances.
    """
    judgements, reasons = [], []
    for column, task in enumerate(tasks):
        known = ~np.isnan(candidate.labels[:, column])
        labels = candidate.labels[known, column].astype(np.float64)
        scores = tuple(each.scores[known, column].astype(np.float64) for each in (live, candidate))
        judgement = _judge_task(task, labels, scores[0], scores[1], users[known], settings)
        judgements.append(judgement)
        reasons += _complaints(judgement, settings)
    is_sure = all(judgement.is_sure for judgement in judgements)
    if not is_sure and settings.when_unsure == "refuse":
        few = min((j for j in judgements if not j.is_sure), key=lambda j: j.rows)
        reasons.append(f"{few.task} has too few held-out labels to judge by ({few.rows})")
    return Verdict(not reasons, len(candidate), is_sure, tuple(reasons), tuple(judgements))


def _judge_task(
    task: TaskLayout,
    labels: NDArray[np.float64],
    live: NDArray[np.float64],
    candidate: NDArray[np.float64],
    users: NDArray[np.generic],
    settings: GuardSettings,
) -> Judgement:
    _, groups = np.unique(users, return_inverse=True)
    loss = _log_losses if task.kind == "binary" else _squared_errors(task)
    losses = loss(labels, live), loss(labels, candidate)
    num, positives = len(labels), int((labels > 0).sum())
    mean_loss = _measured(losses[0].mean() if num else math.nan, losses[1].mean() if num else math.nan, math.nan)
    if num:
        steps = losses[1] - losses[0]
        mean_loss = _measured(mean_loss.live, mean_loss.candidate, _error((steps - steps.mean()) / num, groups))
    if task.kind != "binary":
        return Judgement(task.name, num, None, mean_loss, None, None, num >= settings.least_rows)
    found = None
    if 0 < positives < num:
        (old, of_old), (new, of_new) = (_auc_influences(labels > 0, scores) for scores in (live, candidate))
        found = _measured(old, new, _error(of_new - of_old, groups))
    calibration = None
    if positives:
        ratios = live.sum() / positives, candidate.sum() / positives
        spread = (candidate - ratios[1] * labels) / positives
        calibration = _measured(ratios[0], ratios[1], _error(spread, groups))
    is_sure = num >= settings.least_rows and min(positives, num - positives) >= 10
    return Judgement(task.name, num, positives, mean_loss, found, calibration, is_sure)


def _complaints(judgement: Judgement, settings: GuardSettings) -> list[str]:
    """What speaks against the candidate."""
    if not judgement.is_sure and settings.when_unsure == "accept":
        return []
    noise = settings.errors if judgement.is_sure else 1.0
    found, name, loss = [], judgement.task, judgement.loss
    if loss.difference > max(settings.loss_tolerance * loss.live, noise * loss.error):
        found.append(f"{name} loss {loss.candidate:.4f} against {loss.live:.4f} ({_signed(loss)})")
    area = judgement.auc
    if area is not None and -area.difference > max(settings.auc_tolerance, noise * area.error):
        found.append(f"{name} AUC {area.candidate:.4f} against {area.live:.4f} ({_signed(area)})")
    ratio, (low, high) = judgement.calibration, settings.calibration
    if ratio is not None:
        margin = noise * ratio.error
        is_off = ratio.candidate - margin > high or ratio.candidate + margin < low
        if is_off and _distance(ratio.candidate) > _distance(ratio.live):
            shown = f"{ratio.candidate:.2f} times what happens (live: {ratio.live:.2f}; wanted {low} to {high})"
            found.append(f"{name} predicts {shown}")
    return found


def _measured(live: float, candidate: float, error: float) -> Measured:
    return Measured(float(live), float(candidate), float(candidate) - float(live), float(error))


def _signed(measured: Measured) -> str:
    return f"{measured.difference:+.4f}, standard error {measured.error:.4f}"


def _distance(ratio: float) -> float:
    """From 1, alike above and below."""
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _log_losses(labels: NDArray[np.float64], probs: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(probs, LOG_LOSS_EPS, 1 - LOG_LOSS_EPS)
    losses: NDArray[np.float64] = -np.where(labels > 0, np.log(clipped), np.log1p(-clipped))
    return losses


def _squared_errors(task: TaskLayout) -> Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]:
    def losses(labels: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        errors: NDArray[np.float64] = ((values - labels) / (task.std or 1.0)) ** 2
        return errors

    return losses


def _auc_influences(is_positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """AUC, and how much each row moves it (n,), summing to 0 (DeLong et al. 1988: the placements)."""
    positive, negative = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    placed = np.empty(len(scores))
    for chosen, others in ((is_positive, negative), (~is_positive, positive)):
        below, up_to = (np.searchsorted(others, scores[chosen], side=side) for side in ("left", "right"))
        placed[chosen] = (below + up_to) / (2 * len(others))
    placed[~is_positive] = 1 - placed[~is_positive]
    area = float(placed[is_positive].mean())
    influences = np.where(is_positive, (placed - area) / len(positive), (placed - area) / len(negative))
    return area, influences


def _error(influences: NDArray[np.float64], groups: NDArray[np.integer]) -> float:
    """Standard error of a number that rows move by so much, rows of one group together."""
    return float(np.sqrt((np.bincount(groups, weights=influences) ** 2).sum()))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) if isinstance(value, dict) else _finite(value) for name, value in values.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
