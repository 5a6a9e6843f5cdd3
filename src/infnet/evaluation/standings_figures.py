"""Figures of standings: who leads and by how much, what it costs, and what each part of a model is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infnet.evaluation.figures import COLOURS, GREY, log_ticks, new_figure, plain_axes
from infnet.evaluation.labels import place_labels
from infnet.evaluation.leaderboard import is_baseline
from infnet.evaluation.markdown import TITLES
from infnet.evaluation.significance import MEAN, METRICS
from infnet.evaluation.standings import LEVEL, Standings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cost_accuracy_figure", "difference_figure", "leaderboard_figure"]

_COSTS = {"train_rows_per_s": "training rows per second", "request_ms": "ms per request"}
_BASELINE, _OURS = COLOURS[0], COLOURS[1]


def leaderboard_figure(standings: Standings, title: str) -> Figure:
    """A line per model, best AUC on top: the mean over tasks and seeds, each seed, and how sure the difference is.

    A bar is the 95% interval of the difference to the best baseline, drawn from that baseline's own value: it crosses
    the baseline's line where the two cannot be told apart.
    """
    names = standings.ranked("auc")[::-1]
    figure = new_figure(9.5, 1.7 + 0.27 * len(names))
    figure.suptitle(title, fontsize=11)
    for panel, metric in zip(figure.subplots(1, 2, sharey=True), METRICS, strict=True):
        base = standings.references.get(metric)
        for place, name in enumerate(names):
            _dot(panel, standings, name, metric, place)
        if base is not None:
            panel.axvline(standings.mean(base, MEAN, metric), color="0.3", linewidth=0.9, linestyle="--", zorder=0)
        best = "" if base is None else f"  (dashed: {base}, best baseline)"
        panel.set_xlabel(f"{TITLES[metric]}, mean over tasks{best}", fontsize=9)
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(-0.7, len(names) - 0.3)
        panel.grid(axis="x", color="0.92")
        plain_axes(panel)
    _key(figure, standings)
    return figure


def cost_accuracy_figure(standings: Standings, costs: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Mean AUC over the cost of training and of serving, a named dot per model; up is better."""
    figure = new_figure(11, 5.2)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, len(_COSTS), sharey=True)
    for panel, (key, label) in zip(panels, _COSTS.items(), strict=True):
        points = {
            name: (float(costs[name][key]), standings.mean(name, MEAN, "auc"))
            for name in standings.names
            if name in costs and standings.is_defined(name, MEAN, "auc")
        }
        for name, point in points.items():
            panel.plot(*point, marker="o", markersize=5, color=_colour(name), linestyle="none")
        log_ticks(panel, "x", (1, 2, 3, 5, 7))
        panel.margins(0.16, 0.08)
        panel.set_xlabel(label, fontsize=9)
        panel.grid(color="0.93")
        plain_axes(panel)
    panels[0].set_ylabel("AUC, mean over tasks", fontsize=9)
    for panel, key in zip(panels, _COSTS, strict=True):
        shown = [name for name in standings.names if name in costs and standings.is_defined(name, MEAN, "auc")]
        places = [(float(costs[name][key]), standings.mean(name, MEAN, "auc")) for name in shown]
        place_labels(figure, panel, shown, places, [_colour(name) for name in shown])
    return figure


def difference_figure(
    standings: Standings, groups: Mapping[str, Sequence[tuple[str, str]]], reference: str, title: str
) -> Figure:
    """A bar per variant, in groups: how far its mean over tasks is from the reference, with its 95% interval.

    Args:
        standings: Results, compared with the reference.
        groups: By title, what a variant is called and the entry that shows how good it is.
        reference: Name of the entry that all are compared with.
        title: Of the figure.
    """
    heights: list[tuple[float, str, str]] = []
    headings: list[tuple[float, str]] = []
    at = 0.0
    for group, variants in groups.items():
        headings.append((at, group))
        heights += [(at + place + 1, label, name) for place, (label, name) in enumerate(variants)]
        at += len(variants) + 1.4
    figure = new_figure(9.5, 1.4 + 0.22 * at)
    figure.suptitle(title, fontsize=11)
    for panel, metric in zip(figure.subplots(1, 2, sharey=True), METRICS, strict=True):
        for height, _, name in heights:
            compared = standings.comparison(name, MEAN, metric)
            if compared is None or math.isnan(compared.difference.value):
                panel.plot(0, height, marker="o", color="0.3", markersize=4)
                continue
            found, is_proven = compared.difference, compared.corrected_p < LEVEL
            colour = GREY if not is_proven else _OURS if found.value < 0 else COLOURS[2]
            panel.barh(height, found.value, height=0.62, color=colour)
            panel.plot((found.low, found.high), (height, height), color="0.15", linewidth=1.1)
        panel.axvline(0, color="0.3", linewidth=0.9)
        panel.set_xlabel(f"{TITLES[metric]} minus that of '{reference}', mean over tasks", fontsize=9)
        panel.set_yticks([height for height, *_ in heights], [label for _, label, _ in heights])
        panel.set_ylim(at - 0.6, -0.8)
        panel.grid(axis="x", color="0.92")
        panel.locator_params(axis="x", nbins=6)
        plain_axes(panel)
        panel.tick_params(axis="y", length=0)
    left = figure.axes[0]
    for height, group in headings:
        left.text(
            -0.02,
            height,
            group,
            transform=left.get_yaxis_transform(),
            ha="right",
            va="center",
            weight="bold",
            fontsize=8,
        )
    figure.legend(
        handles=[
            _patch(_OURS, f"worse, corrected p < {LEVEL}"),
            _patch(COLOURS[2], "better"),
            _patch(GREY, "not told apart"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def _dot(panel: Axes, standings: Standings, name: str, metric: str, place: int) -> None:
    mean, colour = standings.mean(name, MEAN, metric), _colour(name)
    if math.isnan(mean):
        return
    compared, base = standings.comparison(name, MEAN, metric), standings.references.get(metric)
    is_proven = False
    if compared is not None and base is not None:
        start, found = standings.mean(base, MEAN, metric), compared.difference
        panel.plot((start + found.low, start + found.high), (place, place), color=colour, linewidth=1.4, alpha=0.75)
        is_proven = compared.corrected_p < LEVEL
    seeds = standings.values(name, MEAN, metric)
    if len(seeds) > 1:
        panel.plot(seeds, [place] * len(seeds), marker="|", markersize=7, linestyle="none", color=colour, alpha=0.6)
    face = colour if is_proven or name == base else "white"
    panel.plot(mean, place, marker="o", markersize=6, color=colour, markerfacecolor=face)


def _key(figure: Figure, standings: Standings) -> None:
    from matplotlib.lines import Line2D

    def dot(colour: str, face: str, label: str) -> Line2D:
        return Line2D(
            [], [], marker="o", linestyle="none", color=colour, markerfacecolor=face, label=label, markersize=6
        )

    handles = [dot(_OURS, _OURS, "INFNet"), dot(_BASELINE, _BASELINE, "others")]
    if standings.references:
        handles.append(dot("0.3", "white", f"hollow: not told apart from the baseline (corrected p ≥ {LEVEL})"))
        handles.append(Line2D([], [], color="0.3", linewidth=1.4, label="95% interval of the difference"))
    if any(len(runs) > 1 for runs in standings.runs.values()):
        handles.append(Line2D([], [], marker="|", linestyle="none", color="0.3", label="seeds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _colour(name: str) -> str:
    return _BASELINE if is_baseline(name) else _OURS
