"""Attention maps as heat maps: fields and past events against the tokens that read them (INFNet fig. 5).

Colours show weights as multiples of the even weight, so that maps of few and of many tokens compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infnet.evaluation.explain import Explanation
from infnet.evaluation.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["event_figure", "field_figure"]

_NUM_FIELDS = 20
_MOST = 8
"""Multiples of the even weight beyond which colours stay the same."""


def field_figure(explanation: Explanation) -> Figure | None:
    """The fields with the largest weights, a panel per block; None if fields were never read."""
    maps = [found for found in explanation.maps if found.source == "fields"]
    if not maps:
        return None
    names = maps[0].keys
    mean = np.concatenate([found.weights for found in maps]).mean(axis=0)
    shown = np.argsort(-mean, kind="stable")[:_NUM_FIELDS]
    figure = new_figure(4 + sum(0.4 * len(found.queries) for found in maps), 2.4 + 0.24 * len(shown))
    title = f"Attention to fields: {explanation.title}"
    if len(shown) < len(names):
        share = mean[shown].sum()
        title += f"\nthe {len(shown)} of {len(names)} fields read most, together {share:.0%} of the weight"
    figure.suptitle(title, fontsize=10)
    widths = [len(found.queries) for found in maps]
    panels = figure.subplots(1, len(maps), squeeze=False, sharey=True, width_ratios=widths)[0]
    scale = _scale([found.relative[:, shown] for found in maps])
    for panel, found in zip(panels, maps, strict=True):
        image = panel.imshow(found.relative[:, shown].T, aspect="auto", interpolation="nearest", **scale)
        panel.set_title(f"block {found.block}", fontsize=10)
        panel.set_xticks(range(len(found.queries)), found.queries, rotation=90, fontsize=9)
    panels[0].set_yticks(range(len(shown)), [names[field] for field in shown], fontsize=9)
    _colour_bar(figure, image, panels)
    return figure


def event_figure(explanation: Explanation) -> Figure | None:
    """Past events, most recent first, a row of panels per block and a column per behaviour; None without events."""
    maps = [found for found in explanation.maps if found.source == "events" and found.keys]
    if not maps:
        return None
    behaviours = list(dict.fromkeys(maps[0].behaviours))
    counts = [maps[0].behaviours.count(behaviour) for behaviour in behaviours]
    heights = [len(found.queries) for found in maps]
    figure = new_figure(11, 1.6 + sum(0.22 * height + 0.3 for height in heights))
    figure.suptitle(f"Attention to past events: {explanation.title}", fontsize=10)
    widths = [max(count, 0.15 * max(counts)) for count in counts]
    ratios: dict[str, Any] = {"height_ratios": heights, "width_ratios": widths}
    grid = figure.subplots(len(maps), len(behaviours), squeeze=False, sharex="col", **ratios)
    scale = _scale([found.relative for found in maps])
    for row, found in zip(grid, maps, strict=True):
        for panel, behaviour in zip(row, behaviours, strict=True):
            relative = found.relative[:, [name == behaviour for name in found.behaviours]]
            extent = (0.5, relative.shape[1] + 0.5, len(found.queries) - 0.5, -0.5)
            image = panel.imshow(relative, aspect="auto", interpolation="nearest", extent=extent, **scale)
            panel.set_yticks([])
            panel.tick_params(axis="x", labelsize=9)
            panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        row[0].set_yticks(range(len(found.queries)), found.queries, fontsize=9)
        row[0].set_ylabel(f"block {found.block}", fontsize=10)
    for panel, behaviour in zip(grid[0], behaviours, strict=True):
        panel.set_title(behaviour, fontsize=10)
    figure.supxlabel("events ago, 1 the most recent", fontsize=10)
    _colour_bar(figure, image, grid.ravel())
    return figure


def _scale(values: Sequence[Any]) -> dict[str, Any]:
    """One logarithmic scale for all panels, the even weight in its middle."""
    from matplotlib.colors import LogNorm

    most = float(np.clip(max(part.max() for part in values), 2, _MOST))
    return {"cmap": "viridis", "norm": LogNorm(1 / most, most)}


def _colour_bar(figure: Figure, image: Any, panels: Any) -> None:
    bar = figure.colorbar(image, ax=list(panels), fraction=0.04, extend="both")
    ticks = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2", 1.0: "even", 2.0: "2 x", 4.0: "4 x", 8.0: "8 x"}
    bar.set_ticks([t for t in ticks if image.norm.vmin <= t <= image.norm.vmax])
    bar.set_ticklabels([label for t, label in ticks.items() if image.norm.vmin <= t <= image.norm.vmax])
    bar.minorticks_off()
    bar.set_label("attention weight / even weight", fontsize=9)
