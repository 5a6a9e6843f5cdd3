"""Figures of what models cost and how that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infnet.evaluation.figures import COLOURS, new_figure
from infnet.evaluation.growth import Growth, Measure
from infnet.evaluation.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_figure", "growth_figure"]


def cost_figure(profile: Profile) -> Figure:
    """A bar per model in order of its operations: counted work, time of a request, time of a training step, memory."""
    costs = sorted(profile.models.items(), key=lambda item: item[1].flops_per_request, reverse=True)
    panels = {
        "MFLOPs per request": [cost.flops_per_request / 1e6 for _, cost in costs],
        "ms per request": [cost.request_ms for _, cost in costs],
        "ms per training step": [cost.batch_ms for _, cost in costs],
        "peak MB of a training step": [cost.peak_mb or 0.0 for _, cost in costs],
    }
    figure = new_figure(11, 1.2 + 0.28 * len(costs))
    figure.suptitle(profile.title, fontsize=10)
    axes = figure.subplots(1, len(panels), sharey=True)
    names = [name for name, _ in costs]
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        bars = panel.barh(names, values, color=[COLOURS[1] if name == "infnet" else COLOURS[0] for name in names])
        panel.bar_label(
            bars,
            labels=[f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values],
            padding=3,
            fontsize=8,
        )
        panel.set_title(title, fontsize=10)
        panel.margins(x=0.25, y=0.01)
        panel.locator_params(axis="x", nbins=4)
        panel.tick_params(labelsize=9)
        panel.tick_params(axis="x", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def growth_figure(growth: Growth) -> Figure:
    """Cost of one row over the number of tokens, log-log: counted and measured, events and fields."""
    figure = new_figure(10, 7.5)
    figure.suptitle("Forward pass of one row, k fitted to cost ~ tokens^k over the range shown", fontsize=11)
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    axes = list(growth.fixed)
    titles: dict[Measure, str] = {"mflops": "MFLOPs, counted", "ms": "ms, measured"}
    for row, measure in zip(grid, titles, strict=True):
        for panel, axis in zip(row, axes, strict=True):
            curves = [curve for curve in growth.curves if curve.axis == axis]
            for curve, colour, marker in zip(curves, COLOURS, "os^D", strict=False):
                label = f"{curve.model}: k = {curve.exponent(measure):.2f}"
                if measure == "mflops":
                    label += f" ({curve.exponent(measure, 2):.2f} at the end)"
                panel.loglog(curve.sizes, getattr(curve, measure), marker=marker, color=colour, label=label)
            panel.legend(fontsize=9, frameon=False, loc="upper left")
            panel.grid(visible=True, which="major", color="0.9")
            panel.set_xticks(curves[0].sizes, [f"{size:,}" for size in curves[0].sizes])
            panel.minorticks_off()
    for panel, axis in zip(grid[-1], axes, strict=True):
        held = next(other for other in axes if other != axis)
        panel.set_xlabel(f"{axis}  ({growth.fixed[held]} {held})")
    for panel, label in zip(grid[:, 0], titles.values(), strict=True):
        panel.set_ylabel(label)
    return figure
