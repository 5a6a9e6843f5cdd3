"""``infnet evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from infnet.evaluation.evaluate import evaluate_run
from infnet.training.checkpoint import write_atomically
from infnet.training.run import Run

__all__ = ["evaluate_command"]


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Directory that 'infnet train --out' wrote.", show_default=False)],
    split: Annotated[str, typer.Option(help="Split of the dataset: valid, test or an extra one.")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the metrics to this file too.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 4096,
) -> None:
    """Measure a run's best checkpoint: AUC, gAUC, log loss, calibration, NDCG, recall; R2, MAE, RMSE for amounts.

    Example: infnet evaluate runs/first --split test --json metrics.json
    """
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"scoring {split}", total=None)
        report = evaluate_run(
            Run.load(run),
            split,
            data=data,
            batch_size=batch_size,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_file, json.dumps(report.as_json(), indent=1) + "\n")
    Console().print(report.as_table(f"{run}, {split}: {report.num_rows:,} rows, {report.num_users:,} users"))
