"""The figure of a policy's front: what can be had of one reward for how much of another."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from infnet.evaluation.figures import COLOURS, GREY, new_figure, plain_axes
from infnet.evaluation.policy_frontier import PolicyFrontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["frontier_figure"]

_MARKED = {"declared": ("#000000", "s", 11), "knee": (COLOURS[1], "D", 7), "kept": (COLOURS[2], "^", 7)}
"""Colour, marker and its size; who is chosen stands inside of the declared one's frame where it is the same."""

_COLUMNS = 90
"""Characters of the title beside each other, of one panel."""


def frontier_figure(frontier: PolicyFrontier, title: str) -> Figure:
    """A panel per pair of the first reward and another: changes beside the declared policy, marked ones with intervals.

    Dots are of the users who report. A line is the same front as the users who chose saw it: how far dots fall behind
    it is the luck of the choice.
    """
    others = range(1, len(frontier.rewards))
    figure = new_figure(6.8 * len(others), 5.2)
    figure.suptitle(textwrap.fill(title, _COLUMNS * len(others)), fontsize=9)
    for panel, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        _draw(panel, frontier, other)
    _key(figure, frontier)
    return figure


def _draw(panel: Axes, frontier: PolicyFrontier, other: int) -> None:
    from matplotlib.ticker import PercentFormatter

    trials = frontier.trials
    panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    panel.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    for index, draw in ((0, panel.axvline), (other, panel.axhline)):
        least = frontier.limits.get(frontier.rewards[index])
        if least is not None:
            draw(least, color=_MARKED["kept"][0], linewidth=0.9, linestyle="--", zorder=0)
    dominated = [number for number in range(len(trials)) if number not in frontier.front]
    for numbers, colour, size in ((dominated, GREY, 3), (frontier.front, COLOURS[0], 4)):
        dots = [[trials[number].reported[index].value for number in numbers] for index in (0, other)]
        panel.plot(*dots, marker="o", markersize=size, linestyle="none", color=colour, alpha=0.7, markeredgewidth=0)
    seen = [[trials[number].chosen[index] for number in frontier.front] for index in (0, other)]
    if len(frontier.rewards) == 2:  # of more, the front is no line
        panel.plot(*seen, color=COLOURS[4], linewidth=1.0, zorder=1)
    for name, number in frontier.marked.items():
        x, y = (trials[number].reported[index] for index in (0, other))
        colour, marker, size = _MARKED[name]
        panel.plot((x.low, x.high), (y.value, y.value), color=colour, linewidth=1.1)
        panel.plot((x.value, x.value), (y.low, y.high), color=colour, linewidth=1.1)
        face = "none" if name == "declared" else colour
        panel.plot(x.value, y.value, marker=marker, markersize=size, color=colour, markerfacecolor=face, zorder=3)
    for axis, index in ((panel.xaxis, 0), (panel.yaxis, other)):
        axis.set_label_text(f"{frontier.rewards[index]}, change beside the declared policy", fontsize=9)
    panel.locator_params(nbins=6)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    panel.margins(0.06)
    plain_axes(panel)


def _key(figure: Figure, frontier: PolicyFrontier) -> None:
    from matplotlib.lines import Line2D

    def dot(colour: str, marker: str, size: int, label: str, face: str | None = None) -> Line2D:
        return Line2D(
            [],
            [],
            marker=marker,
            markersize=size,
            linestyle="none",
            color=colour,
            markerfacecolor=face or colour,
            label=label,
        )

    handles = [dot(COLOURS[0], "o", 4, "front"), dot(GREY, "o", 3, "dominated")]
    if len(frontier.rewards) == 2:
        handles.append(Line2D([], [], color=COLOURS[4], linewidth=1.0, label="front as those who chose saw it"))
    for name in frontier.marked:
        colour, marker, size = _MARKED[name]
        face = "none" if name == "declared" else None
        handles.append(dot(colour, marker, size - 2, name if name == "declared" else f"{name}, 95% intervals", face))
    if frontier.limits:
        handles.append(Line2D([], [], color=_MARKED["kept"][0], linewidth=0.9, linestyle="--", label="limit"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
