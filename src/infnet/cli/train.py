"""``infnet train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infnet.data.dataset import Dataset
from infnet.evaluation.evaluate import split_metrics
from infnet.training import progress as training
from infnet.training.config import load_config
from infnet.training.run import Run
from infnet.training.trainer import train

__all__ = ["train_command"]


def train_command(
    dataset: Annotated[Path, typer.Argument(help="Directory that 'infnet prepare --out' wrote.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the run.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Name of the model; infnet by default.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with model and train.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model.SETTING=VALUE or train.SETTING=VALUE; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Same as --set train.epochs=N.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Same as --set train.seed=N.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or begin it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a model on a prepared dataset, keeping the checkpoint that does best on its validation rows.

    Example: infnet train data/kuairand --model infnet --set train.learning_rate=3e-4 --out runs/first
    """
    data = Dataset.open(dataset)
    begun = Run.load(out).config if resume and Run.exists(out) else None
    chosen = load_config(config, settings or [], begun=begun, model=model, epochs=epochs, seed=seed)
    with _Bar() as bar:
        run = train(
            data,
            chosen,
            out,
            evaluate=split_metrics(data, chosen.batch_size),
            resume=resume,
            force=force,
            progress=bar.show,
        )
    if as_json:
        typer.echo(json.dumps({"run": str(run.path), "checkpoint": str(run.best_path), **run.report}))
    else:
        _print(run)


class _Bar:
    """The epoch's progress, on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None, facts="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, at: training.Progress) -> None:
        """Take the bar to where training stands."""
        facts = []
        if at.loss is not None:
            facts.append(f"loss {at.loss:.4f}")
        if at.rows_per_s is not None:
            facts.append(f"{at.rows_per_s:,.0f} rows/s")
        if at.best is not None:
            facts.append(f"best {at.monitor} {at.best:.4f}" + (f" ({at.stale} evaluations ago)" if at.stale else ""))
        what = "evaluating" if at.is_evaluating else "training"
        self._progress.update(
            self._task,
            description=f"{what}, epoch {at.epoch} of {at.epochs}",
            completed=at.batch,
            total=at.batches,
            facts=", ".join(facts),
        )


def _print(run: Run) -> None:
    report = run.report
    best, metrics = report["best"], report["metrics"]
    parts = [*run.layout.task_names, "mean"]
    table = Table(title=f"{run.path}, validation after epoch {best['epoch']:g}")
    table.add_column("metric", no_wrap=True)
    for part in parts:
        table.add_column(part, justify="right", overflow="fold")
    prefixes = tuple(f"{part}_" for part in parts)
    for name in dict.fromkeys(_metric_of(full, prefixes) for full in metrics if full.startswith(prefixes)):
        table.add_row(name, *[_shown(metrics, f"{part}_{name}") for part in parts])
    console = Console()
    console.print(table)
    why = "validation got no better" if report["stopped"] == "early" else "all epochs done"
    console.print(
        f"{report['steps']:,} steps, {report['rows']:,} rows in {report['train_s']:,.0f} s of training ({why}).\n"
        f"Best {report['monitor']} {best['value']:.4f}, checkpoint {run.best_path}\n"
        f"Next: infnet evaluate {run.path}",
        soft_wrap=True,
        highlight=False,
    )


def _metric_of(full: str, prefixes: tuple[str, ...]) -> str:
    """``click_auc`` -> ``auc``."""
    return full.removeprefix(max((p for p in prefixes if full.startswith(p)), key=len, default=""))


def _shown(metrics: dict[str, float | None], name: str) -> str:
    if name not in metrics:
        return ""
    value = metrics[name]
    return "undefined" if value is None else f"{value:.4f}"
