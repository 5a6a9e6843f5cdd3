"""All metrics of all tasks, for people and for scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from infnet.errors import DataError
from infnet.evaluation.auc import auc, mean_defined, user_aucs_of
from infnet.evaluation.calibration import expected_calibration_error, log_loss, pcoc
from infnet.evaluation.ndcg import ndcg_at_of, recall_at_of
from infnet.evaluation.ordered import order_rows
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.regression import mae, r2, rmse

__all__ = ["EvaluationReport", "TaskReport", "evaluate_predictions"]

_PRINTED_WIDTH = 200


class TaskReport(BaseModel):
    """One task."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["binary", "regression"]
    metrics: dict[str, float]
    """By name; NaN where undefined."""
    counts: dict[str, int]
    """``rows`` with a label; for binary tasks ``positives``, ``users`` and ``judged_users``, those in gAUC."""


class EvaluationReport(BaseModel):
    """How good a model's predictions are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int
    """With or without labels."""
    num_users: int
    tasks: dict[str, TaskReport]

    @property
    def mean(self) -> dict[str, float]:
        """AUC and gAUC averaged over the binary tasks where they are defined; NaN if nowhere."""
        binary = [task.metrics for task in self.tasks.values() if task.kind == "binary"]
        return {name: mean_defined(metrics[name] for metrics in binary) for name in ("auc", "gauc")}

    def as_json(self) -> dict[str, Any]:
        """``tasks`` and ``mean`` by metric name, None where undefined; ``counts`` of what they rest on."""
        return {
            "tasks": {name: _nulled(task.metrics) for name, task in self.tasks.items()},
            "mean": _nulled(self.mean),
            "counts": {
                "rows": self.num_rows,
                "users": self.num_users,
                "tasks": {name: dict(task.counts) for name, task in self.tasks.items()},
            },
        }

    def as_flat(self) -> dict[str, float]:
        """``mean_auc``, ``click_auc`` and so on, NaN where undefined: what training watches and draws.

        ``mean`` is the average of ``mean_auc`` and ``mean_gauc``, or the one of them that is defined. Without a binary
        task there is none of the three.
        """
        flat = {f"{part}_{name}": v for part, task in self.tasks.items() for name, v in task.metrics.items()}
        if not any(task.kind == "binary" for task in self.tasks.values()):
            return flat
        means = self.mean
        return {"mean": mean_defined(means.values())} | {f"mean_{name}": v for name, v in means.items()} | flat

    def as_table(self, title: str | None = None) -> Table:
        """A line per metric, a column per task and one for the mean; ``print`` shows it as well as Rich."""
        table = _Table(title=title)
        table.add_column("metric", no_wrap=True)
        for name in self.tasks:
            table.add_column(name, justify="right", overflow="fold")
        table.add_column("mean", justify="right")
        metrics = _in_order(task.metrics for task in self.tasks.values())
        for position, metric in enumerate(metrics):
            cells = [_shown(task.metrics.get(metric)) for task in self.tasks.values()]
            table.add_row(metric, *cells, _shown(self.mean.get(metric)), end_section=position == len(metrics) - 1)
        for count in _in_order(task.counts for task in self.tasks.values()):
            numbers = [task.counts.get(count) for task in self.tasks.values()]
            table.add_row(count.replace("_", " "), *["" if n is None else f"{n:,}" for n in numbers], "")
        return table


class _Table(Table):
    def __str__(self) -> str:
        console = Console(width=_PRINTED_WIDTH)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")


def evaluate_predictions(predictions: Predictions, k: int = 10) -> EvaluationReport:
    """Judge predictions, task by task, on the rows whose label was observed.

    Args:
        predictions: Of a whole split.
        k: Ranks that NDCG and recall look at.

    Raises:
        DataError: A label is not 0 or 1, or a score is no finite number; the message names the task.
        SpecError: k is less than 1.
    """
    reports = {}
    for column, (task, kind) in enumerate(zip(predictions.tasks, predictions.kinds, strict=True)):
        observed = ~np.isnan(predictions.labels[:, column])
        labels, scores = predictions.labels[observed, column], predictions.scores[observed, column]
        try:
            if kind == "binary":
                reports[task] = _binary_report(labels, scores, predictions.users[observed], k)
            else:
                reports[task] = _regression_report(labels, scores)
        except DataError as error:
            raise DataError(f"task '{task}', observed rows: {error}") from error
    return EvaluationReport(num_rows=len(predictions), num_users=len(np.unique(predictions.users)), tasks=reports)


def _binary_report(labels: NDArray[Any], probs: NDArray[Any], users: NDArray[Any], k: int) -> TaskReport:
    rows = order_rows(labels, probs, users)
    by_user = user_aucs_of(rows)
    metrics = {
        "auc": auc(labels, probs),
        "gauc": by_user.mean(),
        "logloss": log_loss(labels, probs),
        "pcoc": pcoc(labels, probs),
        "ece": expected_calibration_error(labels, probs),
        f"ndcg@{k}": ndcg_at_of(k, rows),
        f"recall@{k}": recall_at_of(k, rows),
    }
    counts = {
        "rows": len(labels),
        "positives": int(by_user.positives.sum()),
        "users": len(by_user.user),
        "judged_users": int(by_user.is_judged.sum()),
    }
    return TaskReport(kind="binary", metrics=metrics, counts=counts)


def _regression_report(labels: NDArray[Any], values: NDArray[Any]) -> TaskReport:
    metrics = {"r2": r2(labels, values), "mae": mae(labels, values), "rmse": rmse(labels, values)}
    return TaskReport(kind="regression", metrics=metrics, counts={"rows": len(labels)})


def _nulled(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _in_order(parts: Iterable[Iterable[str]]) -> list[str]:
    """Distinct names, as they first come."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
