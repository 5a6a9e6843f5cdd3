"""The metrics that a run can watch, and which of two values is the better one."""

from __future__ import annotations

import math

from infnet.data.layout import Layout

__all__ = ["goodness", "metric_names"]

_METRICS = {
    "binary": ("auc", "gauc", "logloss", "pcoc", "ece", "ndcg@10", "recall@10"),
    "regression": ("r2", "mae", "rmse"),
}
_LOWER_IS_BETTER = ("_logloss", "_ece", "_mae", "_rmse")


def metric_names(layout: Layout) -> set[str]:
    """Every metric of a dataset's tasks: ``mean``, ``mean_auc``, ``mean_gauc`` and ``TASK_METRIC``.

    The three averages are over the binary tasks; without any there is none.
    """
    names = {f"{task.name}_{metric}" for task in layout.tasks for metric in _METRICS[task.kind]}
    if any(task.kind == "binary" for task in layout.tasks):
        names |= {"mean", "mean_auc", "mean_gauc"}
    return names


def goodness(name: str, value: float) -> float:
    """A number that is larger the better ``value`` is: losses and errors count negative, ``pcoc`` is best at 1."""
    if name.endswith("_pcoc"):
        return -abs(math.log(value)) if value > 0 else -math.inf
    return -value if name.endswith(_LOWER_IS_BETTER) else value
