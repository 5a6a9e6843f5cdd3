"""``infnet conflicts``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infnet.evaluation.evaluate import open_dataset_of
from infnet.training.conflicts import ConflictReport, task_conflicts
from infnet.training.run import Run

__all__ = ["conflicts_command"]


def conflicts_command(
    run: Annotated[Path, typer.Argument(help="Directory that 'infnet train --out' wrote.", show_default=False)],
    batches: Annotated[int, typer.Option(min=1, help="Training batches to look at.")] = 20,
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Tell how much the tasks' gradients point against each other on the parameters they share.

    Example: infnet conflicts runs/first --batches 50
    """
    opened = Run.load(run)
    report = task_conflicts(opened, open_dataset_of(opened, data), batches)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        Console().print(_table(report, f"{run}, {report.batches} training batches"))


def _table(report: ConflictReport, title: str) -> Table:
    table = Table(title=title)
    table.add_column("tasks", overflow="fold")
    for column in ("mean cosine", "opposed", "norm, first / second"):
        table.add_column(column, justify="right")
    for pair in report.pairs:
        cells = (f"{pair.cosine:.3f}", f"{pair.opposed:.0%}", f"{pair.norm_ratio:.3g}")
        undefined = math.isnan(pair.cosine)
        table.add_row(f"{pair.first}, {pair.second}", *["undefined" if undefined else cell for cell in cells])
    return table
