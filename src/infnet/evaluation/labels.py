"""Names beside the dots of a figure, none over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

__all__ = ["place_labels"]

_RADII = (6, 10, 16, 24, 34, 46, 60)
"""Points between a dot and its name."""
_DIRECTIONS = (0, 180, 60, -60, 120, -120, 90, -90, 30, -30, 150, -150)
"""Degrees, the preferred ones first."""
_NEAR = 10
"""Points up to which a name needs no line to its dot."""
_DOT = 4
"""Points around a dot that are kept free."""


def place_labels(
    figure: Figure, panel: Axes, labels: Sequence[str], points: Sequence[tuple[float, float]], colours: Sequence[str]
) -> None:
    """Write each label near its point, the nearest place where it covers no dot and no other label.

    Args:
        figure: With all else in its place; its layout is fixed from here on.
        panel: Of the figure.
        labels: To write.
        points: In the panel's own coordinates.
        colours: Of the labels.
    """
    from matplotlib.transforms import Bbox

    if not points:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # another layout would move the dots under the labels
    pixels = figure.dpi / 72
    dots = [(float(x), float(y)) for x, y in panel.transData.transform(points)]
    frame = panel.get_window_extent()
    taken = [Bbox.from_bounds(x, y, 0, 0).padded(_DOT * pixels) for x, y in dots]
    for index in sorted(range(len(labels)), key=lambda index: points[index], reverse=True):
        text = panel.annotate(
            labels[index], points[index], (0, 0), textcoords="offset points", fontsize=8, color=colours[index]
        )
        extent = text.get_window_extent()
        places = [
            (radius, _beside(dots[index], radius * pixels, degrees, extent))
            for radius in _RADII
            for degrees in _DIRECTIONS
        ]
        radius, box = min(places, key=lambda place: _covered(place[1], taken, frame))
        taken.append(box)
        x, y = dots[index]
        text.set_position(((box.x0 - x) / pixels, (box.y0 - y) / pixels))
        if radius > _NEAR:
            end = panel.transData.inverted().transform(_nearest(box, x, y))
            panel.plot(*zip(points[index], end, strict=True), color=colours[index], linewidth=0.5, alpha=0.6, zorder=0)


def _beside(dot: tuple[float, float], radius: float, degrees: float, extent: Bbox) -> Bbox:
    """The text's box moved so that the side that faces the dot is at a distance from it."""
    from matplotlib.transforms import Bbox

    across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    left = dot[0] + radius * across - extent.width * (1 - across) / 2
    bottom = dot[1] + radius * up - extent.height * (1 - up) / 2
    return Bbox.from_bounds(left, bottom, extent.width, extent.height)


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Area of the box that is taken by others, or outside the panel."""
    outside = box.width * box.height - _overlap(box, frame)
    return outside + sum(_overlap(box, other) for other in taken)


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _nearest(box: Bbox, x: float, y: float) -> tuple[float, float]:
    """The point of a box that is nearest to another point."""
    return min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
