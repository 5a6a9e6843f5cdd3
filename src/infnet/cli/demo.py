"""``infnet demo``: the whole journey on the built-in synthetic world."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infnet.api import evaluate, prepare, train
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.truth import best_auc
from infnet.data.sources.world import World, WorldConfig
from infnet.errors import SpecError
from infnet.export.exporter import export_run
from infnet.training.config import TrainConfig
from infnet.training.run import Run

__all__ = ["demo_command"]

_MODELS = ("infnet", "shared_bottom")
_SMALL_LOG: dict[str, Any] = {"batch_size": 512, "learning_rate": 3e-3, "embedding_learning_rate": 1e-2}
"""More and larger steps than by default: some 200,000 rows are few."""


def demo_command(
    *,
    out: Annotated[Path, typer.Option(help="Directory for everything the demo makes; an earlier demo is replaced.")] = (
        Path("demo")
    ),
    users: Annotated[int, typer.Option(min=10, help="Users of the world.")] = 3000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows at most.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the test metrics as JSON.")] = False,
) -> None:
    """Make a synthetic world, prepare its log, train INFNet and Shared-Bottom, compare both with the truth, and rank.

    Example: infnet demo --out demo
    """
    _clear(out)
    console = Console(stderr=as_json)
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("1/5 synthesize", total=1.0, facts="")
        world = World.create(WorldConfig(num_users=users, num_items=max(users // 3, 100), num_days=10))
        written = write_world(
            world, out / "raw", progress=lambda done, days: bar.update(task, completed=done / days, facts="")
        )
        bar.update(task, description="2/5 prepare", completed=0)
        report = prepare(
            known_spec("synthetic"),
            out / "raw",
            out / "prepared",
            progress=lambda stage, share: bar.update(task, completed=share, facts=stage),
        )
        dataset = Dataset.open(out / "prepared")
        metrics: dict[str, Any] = {}
        for number, model in enumerate(_MODELS, start=3):
            bar.update(task, description=f"{number}/5 train {model}", completed=0)
            run = train(
                dataset,
                TrainConfig(model=model, epochs=epochs, **_SMALL_LOG),
                out / f"run-{model}",
                progress=lambda at: bar.update(
                    task,
                    completed=(at.epoch - 1 + at.batch / at.batches) / at.epochs,
                    facts="" if at.loss is None else f"loss {at.loss:.4f}",
                ),
            )
            metrics[model] = evaluate(run, "test").as_json()
        bar.update(task, description="5/5 export", completed=0)
        shown = _exported(out, dataset, lambda stage: bar.update(task, facts=stage))
    test_from = int(dataset.rows("test").time.min())
    best = best_auc(out / "raw", (pl.col("time_ms") >= test_from) & (pl.col("is_rand") == 0))
    if as_json:
        typer.echo(json.dumps({"models": metrics, "best_auc": best}, indent=1))
        return
    console.print(f"A world of {written.users:,} users and {written.items:,} items: {written.rows:,} impressions.\n")
    console.print(report.as_tables())
    console.print(_comparison(metrics, best))
    console.print(f"{shown}\n", soft_wrap=True, highlight=False)
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. Look around in {out}: the runs hold curves for TensorBoard.\n"
        f"Next: infnet evaluate {out / 'run-infnet'} --split random, "
        "then your own log (README.md shows the YAML).",
        soft_wrap=True,
        highlight=False,
    )


def _exported(out: Path, dataset: Dataset, on_stage: Callable[[str], None]) -> str:
    """Export INFNet's run; what to tell of it."""
    try:
        bundle = export_run(Run.load(out / "run-infnet"), out / "bundle", on_stage=on_stage)
    except SpecError as error:  # the exporters are an extra
        return f"No bundle: {error}"
    keys = [bundle.items.key(index) for index in range(1, min(len(bundle.items), 500) + 1)]
    (out / "items.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")
    user = bundle.users.key(int(dataset.rows("test").user[0]))
    ms = bundle.manifest.request_ms[bundle.manifest.backend]
    return (
        f"The bundle scores 500 items for a user in {ms:.1f} ms on one thread. Rank some:\n"
        f"  infnet rank {out / 'bundle'} --user {user} --items {out / 'items.txt'} --limit 10\n"
        f"Serve it, and tell it what happened (http://127.0.0.1:8000/docs):\n"
        f"  infnet serve {out / 'bundle'} --events {out / 'events'} --state {out / 'state'}"
    )


def _clear(out: Path) -> None:
    """Make way for a new demo, and for nothing else."""
    if not out.exists():
        return
    if not (out / "raw" / "world.json").is_file() and any(out.iterdir()):
        raise SpecError(f"--out {out} holds something that is no demo; name another directory")
    shutil.rmtree(out)


def _comparison(metrics: dict[str, Any], best: dict[str, float]) -> Table:
    table = Table(title="Test days: AUC and gAUC by task, beside the AUC of the true probabilities")
    table.add_column("task")
    for model in metrics:
        table.add_column(f"{model}\nAUC", justify="right")
        table.add_column("\ngAUC", justify="right")
    table.add_column("truth\nAUC", justify="right")
    table.add_column("random\nAUC", justify="right")
    first = next(iter(metrics.values()))
    for name in [t for t, values in first["tasks"].items() if "auc" in values] + ["mean"]:
        cells = []
        for of_model in metrics.values():
            values = of_model["mean"] if name == "mean" else of_model["tasks"][name]
            cells += [_shown(values["auc"]), _shown(values["gauc"])]
        table.add_row(name, *cells, _shown(best.get(name)) if name != "mean" else "", "0.5000")
    for name, values in first["tasks"].items():
        if "r2" in values:
            cells = [cell for m in metrics.values() for cell in (f"R2 {_shown(m['tasks'][name]['r2'])}", "")]
            table.add_row(name, *cells, "", "")
    return table


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
