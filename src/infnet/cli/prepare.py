"""``infnet prepare``."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from infnet.data.prepare import prepare
from infnet.data.sources.known import known_spec, known_specs
from infnet.errors import SpecError, did_you_mean
from infnet.schema import DatasetSpec, load_spec

__all__ = ["prepare_command"]


def prepare_command(
    spec: Annotated[str, typer.Argument(help="A YAML file, or the name of a known dataset.", show_default=False)],
    *,
    raw: Annotated[Path, typer.Option(help="Directory with the raw files.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory of the prepared dataset.", show_default=False)],
    history: Annotated[
        Path | None, typer.Option(help="Parquet or CSV with events from before the log begins.", show_default=False)
    ] = None,
    valid_from: Annotated[
        str | None, typer.Option(metavar="DATE", help="First day of validation.", show_default=False)
    ] = None,
    test_from: Annotated[
        str | None, typer.Option(metavar="DATE", help="First day of testing.", show_default=False)
    ] = None,
    delay_s: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds after which events appear in histories (all behaviours).", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn raw logs into a dataset that models train on. It appears whole or not at all.

    Example: infnet prepare kuairand-pure --raw raw/KuaiRand-Pure --out data/kuairand
    """
    declared = _with_dates(_spec(spec), valid_from, test_from)
    if delay_s is not None:
        declared = declared.with_delay(delay_s)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def show(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=share)

        report = prepare(declared, raw, out, history=history, progress=show)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(report.as_tables())


def _spec(name: str) -> DatasetSpec:
    if name in known_specs():
        return known_spec(name)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return load_spec(path)
    raise SpecError(f"'{name}' is neither a YAML file nor a known dataset{did_you_mean(name, known_specs())}")


def _with_dates(spec: DatasetSpec, valid_from: str | None, test_from: str | None) -> DatasetSpec:
    if valid_from is None and test_from is None:
        return spec
    first, second = _day("--valid-from", valid_from), _day("--test-from", test_from)
    if first >= second:
        raise SpecError(f"--valid-from {first} is not before --test-from {second}; validation days come first")
    if spec.log.time is None:
        raise SpecError(
            f"{spec.name} has no timestamps and is split by fractions; leave --valid-from and --test-from out"
        )
    return spec.with_split(first, second)


def _day(option: str, text: str | None) -> date:
    if text is None:
        raise SpecError(f"{option} is missing; --valid-from and --test-from go together")
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"{option} is '{text}', wanted a day such as 2022-05-05") from error
