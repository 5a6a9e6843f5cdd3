"""An analysis as one HTML file that needs nothing else: tables, and figures as SVG inside it."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infnet.evaluation.figures import COLOURS, GREY, new_figure, plain_axes
from infnet.experiments.analysis import Analysis, DayEffect
from infnet.experiments.report import Daily, effect_cells, effect_titles, facts, headline
from infnet.experiments.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_html"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left}svg{max-width:100%;height:auto}"
    ".verdict{font-size:1.4rem;font-weight:600}"
)
_TINTS = {"better": "#e3f4ea", "held": "#e3f4ea", "worse": "#fbe3dc", "harmed": "#fbe3dc"}
_MOST_CURVES = 6


def as_html(analysis: Analysis, verdict: Verdict, daily: Daily) -> str:
    """The page; the same analysis gives the same bytes.

    Raises:
        SpecError: matplotlib is not installed.
    """
    title = headline(analysis, verdict)
    states = [effect.state for effect in analysis.effects]
    parts = [
        f'<p class="verdict">{html.escape(title)}</p>',
        _list(verdict.reasons),
        _list(facts(analysis)),
        _table(effect_titles(analysis), [effect_cells(effect) for effect in analysis.effects], states),
        _interval_figure(analysis),
    ]
    for (metric, variant), days in list(daily.items())[:_MOST_CURVES]:
        if len(days) > 1:
            parts += [f"<h2>{html.escape(f'{metric}, {variant}: up to each day')}</h2>", _daily_figure(days, analysis)]
    if analysis.segments:
        rows = [[*(e.segment or ("", "")), *effect_cells(e)] for e in analysis.segments]
        titles = ["segment", "value", *effect_titles(analysis)]
        parts += ["<h2>Segments</h2>", _table(titles, rows, [effect.state for effect in analysis.segments])]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], states: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        f'<tr style="background:{_TINTS.get(state, "none")}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row, state in zip(rows, states, strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _interval_figure(analysis: Analysis) -> str:
    """A line per metric and treatment."""
    shown = [e for e in analysis.effects if e.compared is not None and e.compared.low is not None]
    if not shown:
        return ""
    figure = new_figure(8, 0.9 + 0.35 * len(shown))
    panel = figure.subplots()
    plain_axes(panel)
    panel.axvline(0, color=GREY, linewidth=1)
    for row, effect in enumerate(reversed(shown)):
        found = effect.compared
        if found is None or found.low is None or found.high is None or found.relative is None:
            continue
        colour = COLOURS[{"better": 2, "held": 2, "worse": 1, "harmed": 1}.get(effect.state, 0)]
        panel.plot([100 * found.low, 100 * found.high], [row, row], color=colour, linewidth=2)
        panel.plot([100 * found.relative], [row], "o", color=colour, markersize=5)
    names = [f"{effect.metric.name}, {effect.variant}" for effect in reversed(shown)]
    panel.set_yticks(range(len(shown)), names, parse_math=False)
    panel.set_ylim(-0.6, len(shown) - 0.4)
    panel.set_xlabel("change beside the control, %", fontsize=9)
    return _svg(figure)


def _daily_figure(days: Sequence[DayEffect], analysis: Analysis) -> str:
    """The relative effect, with both intervals."""
    figure = new_figure(8, 3)
    panel = figure.subplots()
    plain_axes(panel)
    panel.axhline(0, color=GREY, linewidth=1)
    places = [effect.day - days[0].day + 1 for effect in days]
    panel.plot(places, [_percent(effect.fixed.relative) for effect in days], color=COLOURS[0], linewidth=2)
    for name, colour, alpha in (("sequential", COLOURS[4], 0.25), ("fixed", COLOURS[0], 0.3)):
        bounds = [effect.fixed if name == "fixed" else effect.sequential for effect in days]
        low, high = [_percent(b.low) for b in bounds], [_percent(b.high) for b in bounds]
        panel.fill_between(places, low, high, color=colour, alpha=alpha, linewidth=0, label=name)
    last = days[-1].sequential
    if last.low is not None and last.high is not None:  # the first days would hide all others
        reach = 3 * (last.high - last.low)
        panel.set_ylim(100 * min(0.0, last.low - reach / 2), 100 * max(0.0, last.high + reach / 2))
    panel.set_xlabel("day", fontsize=9)
    panel.set_ylabel("change, %", fontsize=9)
    level = f"{1 - analysis.settings.alpha:.0%} interval"
    panel.legend(title=level, frameon=False, fontsize=8, title_fontsize=8)
    return _svg(figure)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "infnet", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]
