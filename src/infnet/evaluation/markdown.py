"""Standings as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from infnet.evaluation.standings import Comparison, Standings

__all__ = ["TITLES", "comparison_cell", "metric_tables", "number_cell", "p_cell", "plain_tables", "table"]

TITLES = {
    "auc": "AUC",
    "gauc": "gAUC",
    "logloss": "log loss",
    "ece": "ECE",
    "pcoc": "PCOC",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
}
"""Of metrics whose title is not their name."""

_GROUPS = {
    "Probabilities": ("logloss", "ece", "pcoc"),
    "Top of the ranking": ("ndcg@10", "recall@10"),
    "Amounts": ("r2", "mae", "rmse"),
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are aligned to the left."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * left + "---:|" * (len(header) - left)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def metric_tables(
    standings: Standings, metric: str, names: Sequence[str], label: Callable[[str], str], *, reference: str
) -> str:
    """Means of a metric over seeds, and the differences to the reference.

    Args:
        standings: All results.
        metric: ``auc`` or ``gauc``.
        names: Entries, in the order of the rows.
        label: What a row is called.
        reference: What the reference is, such as ``the best baseline``.
    """
    parts, title = standings.compared_parts, TITLES[metric]
    base = standings.references.get(metric)
    means = table(
        ["model", *parts],
        ([label(name), *(_mean_cell(standings, name, part, metric) for part in parts)] for name in names),
    )
    if base is None or len(standings.names) == 1:
        return f"## {title}\n\n{means}\n"
    differences = table(
        [f"minus {base}", *parts],
        (
            [label(name), *(comparison_cell(standings.comparison(name, part, metric)) for part in parts)]
            for name in names
            if name != base
        ),
    )
    return f"## {title}\n\n{means}\n\n{title} beside {base}, {reference}:\n\n{differences}\n"


def plain_tables(standings: Standings, names: Sequence[str], label: Callable[[str], str]) -> str:
    """Means over seeds of all other metrics, a table per group."""
    tables = []
    for group, metrics in _GROUPS.items():
        columns = [
            (task, metric) for task in standings.tasks for metric in metrics if metric in standings.metrics(task)
        ]
        if columns:
            header = ["model", *(f"{task} {TITLES.get(metric, metric)}" for task, metric in columns)]
            rows = ([label(name), *(_mean_cell(standings, name, *column) for column in columns)] for name in names)
            tables.append(f"## {group}\n\n{table(header, rows)}\n")
    return "\n".join(tables)


def comparison_cell(compared: Comparison | None) -> str:
    """``+0.0021 (-0.0004 to +0.0046), p 0.12``."""
    if compared is None:
        return ""
    found = compared.difference
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}), p {p_cell(compared.corrected_p)}"


def p_cell(p_value: float) -> str:
    """A p-value with the digits that matter."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def number_cell(value: float | None) -> str:
    """A number of any size, short: ``12.3M``, ``4,500``, ``0.31``; empty for none."""
    if value is None or math.isnan(value):
        return ""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _mean_cell(standings: Standings, name: str, part: str, metric: str) -> str:
    """``0.7459 ± 0.0014``, bold if it is proven best."""
    mean = standings.mean(name, part, metric)
    if math.isnan(mean):
        return "undefined"
    shown = f"{mean:.4f}" if abs(mean) < 1000 else f"{mean:,.1f}"
    spread = standings.spread(name, part, metric)
    if spread is not None:
        shown += f" ± {spread:.4f}" if abs(mean) < 1000 else f" ± {spread:,.1f}"
    return f"**{shown}**" if standings.is_proven_best(name, part, metric) else shown
