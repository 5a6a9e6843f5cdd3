"""Figures as PNG files; matplotlib is loaded when the first one is made."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infnet.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "check_figures", "log_ticks", "new_figure", "plain_axes", "save_figure"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Told apart by colour-blind readers too: M. Okabe and K. Ito, "Color Universal Design", 2008."""

GREY = "#9a9a9a"
"""Of what is there for comparison only."""

_DPI = 150


def check_figures() -> None:
    """See that figures can be drawn, before there is much work to lose.

    Raises:
        SpecError: matplotlib is not installed.
    """
    new_figure(1, 1)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, that needs no display.

    Raises:
        SpecError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpecError("figures are drawn by matplotlib, which is not here: pip install 'infnet[figures]'") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(panel: Axes) -> None:
    """Leave of a panel's frame what is needed to read values."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.set_axisbelow(True)


def log_ticks(panel: Axes, which: Literal["x", "y"], digits: tuple[int, ...]) -> None:
    """Make an axis logarithmic, with plain numbers at these multiples of every power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis: Axis
    if which == "x":
        panel.set_xscale("log")
        axis = panel.xaxis
    else:
        panel.set_yscale("log")
        axis = panel.yaxis
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a small PNG file, whole or not at all; the same figure gives the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    # A palette takes a third of the space; the pixels alone are kept, and no version or date beside them.
    pixels = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        pixels.save(partial, format="PNG", optimize=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
