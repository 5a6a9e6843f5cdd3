"""``infnet data``: known datasets, downloads and the synthetic world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from infnet.data.catalog import known_dataset, known_datasets
from infnet.data.download import download_dataset
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.world import World, WorldConfig

__all__ = ["data_app"]

data_app = typer.Typer(
    help="Get raw data: list known datasets, download one, or synthesize a world.", no_args_is_help=True
)
_DEFAULTS = WorldConfig()
_HOW = {"download": "infnet data download", "form": "by hand", "synthesize": "infnet data synthesize"}


@data_app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Show the datasets known by name.

    Example: infnet data list
    """
    if as_json:
        typer.echo(json.dumps([d.model_dump(mode="json") for d in known_datasets()], indent=2))
        return
    table = Table("name", "rows", "what", "licence", "how to get")
    for dataset in known_datasets():
        count = "any" if dataset.rows is None else f"{dataset.rows:,}"
        table.add_row(dataset.name, count, dataset.what, dataset.licence, _HOW[dataset.how])
    Console().print(table)


@data_app.command("download")
def download_command(
    name: Annotated[str, typer.Argument(help="A name from 'infnet data list'.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory to put the dataset's folder in.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Download and unpack a dataset; run it again to go on after an interruption.

    Example: infnet data download kuairand-pure --out raw
    """
    dataset = known_dataset(name)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {
            stage: bar.add_task(stage, total=None, visible=False) for stage in ("fetching", "checking", "unpacking")
        }

        def show(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total, visible=True)

        path = download_dataset(dataset, out, show)
    if as_json:
        typer.echo(json.dumps({"name": dataset.name, "path": str(path)}))
        return
    typer.echo(f"{dataset.name} is in {path} ({dataset.licence})")
    typer.echo(f"Next: infnet prepare {dataset.name} --raw {path} --out {dataset.name}")


@data_app.command("synthesize")
def synthesize_command(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write; must not exist or be empty.", show_default=False)],
    users: Annotated[int, typer.Option(min=1, help="Users.")] = _DEFAULTS.num_users,
    items: Annotated[int, typer.Option(min=2, help="Items.")] = _DEFAULTS.num_items,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days of the log.")] = _DEFAULTS.num_days,
    drift: Annotated[
        float, typer.Option(min=0, max=1, help="How far users' interests swing over days; 0 for not at all.")
    ] = _DEFAULTS.drift,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = _DEFAULTS.seed,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a synthetic world's log and features, and its true probabilities in a directory of their own.

    A user brings about nine rows a day.

    Example: infnet data synthesize --users 10000 --items 4000 --days 14 --out raw/synthetic
    """
    world = World.create(WorldConfig(num_users=users, num_items=items, num_days=days, drift=drift, seed=seed))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("days", total=days)
        report = write_world(world, out, lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    table = Table(title=f"{out}: {report.rows:,} rows, {report.users:,} users, {report.items:,} items")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for label, value in (
        ("click rate", f"{report.click_rate:.1%}"),
        ("like rate", f"{report.like_rate:.1%}"),
        ("long-view rate", f"{report.long_view_rate:.1%}"),
        ("return rate", f"{report.return_rate:.1%}"),
        ("watch time", f"{report.mean_watch_time:.1f} s"),
        ("random exposures", f"{report.random_share:.1%}"),
        *((f"best AUC, {task}", f"{auc:.4f}") for task, auc in report.best_auc.items()),
    ):
        table.add_row(label, value)
    Console().print(table)
    typer.echo(f"Next: infnet prepare synthetic --raw {out} --out {out.name}-prepared")
