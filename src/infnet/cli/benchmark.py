"""``infnet benchmark``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infnet.evaluation.benchmark import benchmark
from infnet.evaluation.series import FailedRun, SeriesProgress

__all__ = ["SeriesBar", "benchmark_command", "stop_if_failed"]


def benchmark_command(
    dataset: Annotated[Path, typer.Argument(help="Directory that 'infnet prepare --out' wrote.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the leaderboard and its runs.", show_default=False)],
    models: Annotated[str, typer.Option(help="Names with commas, or all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model, with seeds from 0.")] = 3,
    trials: Annotated[int, typer.Option(min=0, help="Tune each model first, with so many trials.")] = 0,
    space: Annotated[str, typer.Option(help="What to search with --trials: small, paper or a YAML file.")] = "small",
    tuned: Annotated[
        Path | None, typer.Option(help="Directory with MODEL/best.yaml of 'infnet tune'.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split to judge on: valid, test or an extra one.")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model.SETTING=VALUE or train.SETTING=VALUE; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print leaderboard.json.")] = False,
) -> None:
    """Train models with several seeds and compare them, with intervals, p-values and costs; called again, it goes on.

    Example: infnet benchmark data/kuairand --models infnet,shared_bottom --seeds 3 --out boards/kuairand
    """
    with SeriesBar() as bar:
        board = benchmark(
            dataset,
            models,
            out,
            seeds=seeds,
            trials=trials,
            space=space,
            tuned=tuned,
            split=split,
            settings=settings or (),
            progress=bar.show,
        )
    if as_json:
        typer.echo(json.dumps(board.as_json(), indent=1))
    else:
        if board.standings.results:
            Console().print(board.as_table())
        typer.echo(f"All tables: {out / 'leaderboard.md'}")
    stop_if_failed(board.failures)


class SeriesBar:
    """The run under way and how many there are, on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None, facts="")

    def __enter__(self) -> SeriesBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, at: SeriesProgress) -> None:
        """Take the bar to where the series stands."""
        seed = "" if at.seed is None else f", seed {at.seed}"
        done, facts = None, [at.note] if at.note else []
        if at.training is not None:
            training = at.training
            done = (training.epoch - 1 + training.batch / max(1, training.batches)) / training.epochs
            if training.rows_per_s is not None:
                facts.append(f"{training.rows_per_s:,.0f} rows/s")
        self._progress.update(
            self._task,
            description=f"{at.number} of {at.total}: {at.stage} {at.name}{seed}",
            completed=done or 0.0,
            total=None if done is None else 1.0,
            facts=", ".join(facts),
        )


def stop_if_failed(failures: Sequence[FailedRun]) -> None:
    """Tell what failed, and end with exit code 1, if anything did."""
    for failure in failures:
        seed = "" if failure.seed is None else f", seed {failure.seed}"
        print(f"Failed: {failure.name}{seed}: {failure.reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
