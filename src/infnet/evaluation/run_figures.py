"""Figures of runs: how training went, and whether probabilities can be believed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infnet.evaluation.figures import COLOURS, GREY, log_ticks, new_figure, plain_axes
from infnet.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_figure", "reliability", "training_figure"]

_BINS = 15
_RARE = 0.1
"""Rate below which a task is drawn on logarithmic axes."""
_MARKERS = "os^Dv<>"


def training_figure(runs: Mapping[str, Sequence[Path]], highlighted: Sequence[str], monitor: str, title: str) -> Figure:
    """Training loss and, if any run was evaluated twice, a validation metric over steps, each the mean over seeds.

    Args:
        runs: By model, the ``metrics.jsonl`` of every seed.
        highlighted: Models in colour, as many as there are colours; the others are grey.
        monitor: The validation metric.
        title: Of the figure.
    """
    journals_of = {name: [_journal(path) for path in paths] for name, paths in runs.items()}
    evaluations = {
        name: [_evaluations(journal, monitor) for journal in of_name] for name, of_name in journals_of.items()
    }
    has_curves = any(len(values) > 1 for of_name in evaluations.values() for values in of_name)
    figure = new_figure(11 if has_curves else 6.5, 4.6)
    figure.suptitle(title, fontsize=11)
    losses, *metric = figure.subplots(1, 2 if has_curves else 1, squeeze=False)[0]
    shown = list(highlighted[: len(COLOURS)])
    for name in [*(name for name in runs if name not in shown), *shown]:
        journals = journals_of[name]
        style: dict[str, Any] = {"color": GREY, "linewidth": 0.7, "alpha": 0.6, "markersize": 3, "zorder": 1}
        if name in shown:
            style = {"color": COLOURS[shown.index(name)], "linewidth": 1.5, "markersize": 5, "label": name}
        _curve(losses, [[(e["step"], e["loss"]) for e in j if e["kind"] == "train"] for j in journals], style)
        marker = _MARKERS[shown.index(name)] if name in shown else "."
        for panel in metric:
            _curve(panel, evaluations[name], {**style, "marker": marker})
    losses.set_ylabel("training loss, all tasks", fontsize=9)
    for panel in metric:
        panel.set_ylabel(f"validation metric: {monitor}", fontsize=9)
    for panel in (losses, *metric):
        panel.set_xlabel("steps", fontsize=9)
        panel.grid(color="0.93")
        plain_axes(panel)
    handles, labels = [losses, *metric][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def calibration_figure(predictions: Mapping[str, Sequence[Predictions]], title: str) -> Figure:
    """Reliability diagrams: observed rate over predicted probability in bins of as many rows each, a panel per task.

    Args:
        predictions: By model, of every seed; all seeds' rows are binned together.
        title: Of the figure.
    """
    first = next(iter(predictions.values()))[0]
    tasks = [task for task, kind in zip(first.tasks, first.kinds, strict=True) if kind == "binary"]
    figure = new_figure(1.2 + 3.3 * len(tasks), 4.0)
    figure.suptitle(title, fontsize=11)
    for panel, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        column = first.tasks.index(task)
        lowest, highest = math.inf, 0.0
        for index, (name, of_seeds) in enumerate(predictions.items()):
            probs = np.concatenate([p.scores[:, column] for p in of_seeds])
            labels = np.concatenate([p.labels[:, column] for p in of_seeds])
            predicted, observed = reliability(labels, probs, _BINS)
            is_drawn = (observed > 0) & (predicted > 0)  # zero has no place on a logarithmic axis
            predicted, observed = predicted[is_drawn], observed[is_drawn]
            panel.plot(
                predicted,
                observed,
                marker=_MARKERS[index],
                markersize=4,
                linewidth=1.1,
                color=COLOURS[index],
                label=name,
            )
            both = np.concatenate([predicted, observed])
            lowest, highest = min(lowest, both.min(initial=1.0)), max(highest, both.max(initial=0.0))
        panel.plot((lowest, highest), (lowest, highest), color="0.6", linewidth=0.9, linestyle="--", zorder=0)
        seen = first.labels[~np.isnan(first.labels[:, column]), column]
        if lowest < highest and seen.mean() < _RARE:
            digits = (1, 3) if highest < 300 * lowest else (1,)
            log_ticks(panel, "x", digits)
            log_ticks(panel, "y", digits)
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("predicted", fontsize=9)
        panel.grid(color="0.93")
        plain_axes(panel)
    figure.axes[0].set_ylabel("observed", fontsize=9)
    handles, labels_of = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels_of, loc="outside lower center", ncols=len(predictions), frameon=False, fontsize=8)
    return figure


def reliability(
    labels: NDArray[Any], probs: NDArray[Any], num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and mean label (b,) of bins with as many rows each, by ascending probability.

    Labels (n,) are NaN where unobserved; rows with equal probabilities may fall into two bins.
    """
    observed = ~np.isnan(labels)
    order = np.argsort(probs[observed], kind="stable")
    bins = [part for part in np.array_split(order, num_bins) if len(part)]
    values, truth = probs[observed].astype(np.float64), labels[observed].astype(np.float64)
    return np.array([values[part].mean() for part in bins]), np.array([truth[part].mean() for part in bins])


def _journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _evaluations(journal: Sequence[Mapping[str, Any]], monitor: str) -> list[tuple[int, float | None]]:
    return [(entry["step"], entry["metrics"].get(monitor)) for entry in journal if entry["kind"] == "evaluation"]


def _curve(panel: Axes, seeds: Sequence[Sequence[tuple[int, float | None]]], style: Mapping[str, Any]) -> None:
    """The mean over seeds at the steps that all of them have."""
    defined = [{step: value for step, value in curve if value is not None} for curve in seeds]
    steps = [step for step in defined[0] if all(step in curve for curve in defined)]
    panel.plot(steps, [math.fsum(curve[step] for curve in defined) / len(defined) for step in steps], **style)
