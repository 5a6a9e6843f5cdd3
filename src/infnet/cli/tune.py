"""``infnet tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infnet.data.dataset import Dataset
from infnet.evaluation.evaluate import split_metrics
from infnet.training.search import TuneProgress, TuneResult, tune
from infnet.training.study import Trial

__all__ = ["tune_command"]


def tune_command(
    dataset: Annotated[Path, typer.Argument(help="Directory that 'infnet prepare --out' wrote.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the study.", show_default=False)],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "infnet",
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    space: Annotated[str, typer.Option(help="What to search: small, paper or a YAML file.")] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each trial; the space's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search and of each trial.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Search a model's settings within a budget of trials, beginning with its defaults; called again, it goes on.

    Example: infnet tune data/kuairand --model infnet --trials 30 --out studies/infnet
    """
    data = Dataset.open(dataset)
    with _Lines() as lines:
        result = tune(
            data,
            model,
            out,
            trials=trials,
            space=space,
            epochs=epochs,
            seed=seed,
            evaluate=split_metrics(data),
            progress=lines.show,
        )
    if as_json:
        typer.echo((out / "report.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print(result, dataset)


class _Lines:
    """A line for every trial that has ended, and a bar for the one that runs, on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None)

    def __enter__(self) -> _Lines:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, at: TuneProgress) -> None:
        """Take the bar to where tuning stands."""
        if at.ended is not None:
            self._progress.console.print(_line(at.ended), soft_wrap=True, highlight=False)
        elif at.training is not None:
            best = "" if at.best is None else f", best {at.best.value:.4f} (trial {at.best.number})"
            done = at.training.batches * (at.training.epoch - 1) + at.training.batch
            self._progress.update(
                self._task,
                description=f"trial {at.number} of {at.trials}{best}",
                completed=done,
                total=at.training.batches * at.training.epochs,
            )


def _line(trial: Trial) -> str:
    value = "" if trial.value is None else f" {trial.value:.4f}"
    what = "defaults" if trial.number == 0 else _settings(trial)
    return f"trial {trial.number}: {trial.state}{value} in {trial.seconds:,.0f} s, {trial.reason or what}"


def _settings(trial: Trial) -> str:
    return " ".join(f"{name.split('.', 1)[1]}={_shown(value)}" for name, value in trial.settings.items())


def _print(result: TuneResult, dataset: Path) -> None:
    defaults, best = result.trials[0], result.trials[result.best_trial]
    table = Table(title=f"{result.path}, validation {result.monitor}")
    table.add_column("setting", no_wrap=True)
    table.add_column("defaults", justify="right", overflow="fold")
    table.add_column(f"best: trial {best.number}", justify="right", overflow="fold")
    for position, (name, value) in enumerate(defaults.settings.items()):
        last = position == len(defaults.settings) - 1
        table.add_row(name, _shown(value), _shown(best.settings[name]), end_section=last)
    table.add_row(result.monitor, *["failed" if t.value is None else f"{t.value:.4f}" for t in (defaults, best)])
    console = Console()
    console.print(table)
    states = [trial.state for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed"))
    lines = [f"{result.num_trials} trials ({counts}) in {sum(trial.seconds for trial in result.trials):,.0f} s."]
    lines += [f"Left out: {name}, {why}" for name, why in result.skipped.items()]
    lines.append(f"Next: infnet train {dataset} --config {result.path / 'best.yaml'} --out RUN")
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
