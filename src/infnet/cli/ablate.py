"""``infnet ablate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infnet.cli.benchmark import SeriesBar, stop_if_failed
from infnet.evaluation.ablation import ablate

__all__ = ["ablate_command"]


def ablate_command(
    dataset: Annotated[Path, typer.Argument(help="Directory that 'infnet prepare --out' wrote.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the tables and their runs.", show_default=False)],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant, with seeds from 0.")] = 3,
    only: Annotated[
        str | None, typer.Option(help="Names of variants with commas; all by default.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with model and train, of the full model.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Split to judge on: valid, test or an extra one.")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model.SETTING=VALUE or train.SETTING=VALUE; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print ablation.json.")] = False,
) -> None:
    """Train INFNet with parts left out or changed, and tell what each is worth; called again, it goes on.

    Example: infnet ablate data/kuairand --only no-task-tokens,no-gates,no-cross-attention --out ablations/kuairand
    """
    with SeriesBar() as bar:
        found = ablate(
            dataset,
            out,
            seeds=seeds,
            only=only,
            config=config,
            split=split,
            settings=settings or (),
            progress=bar.show,
        )
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
    else:
        if found.standings.results:
            Console().print(found.as_table())
        typer.echo(f"All tables: {out / 'ablation.md'}")
    stop_if_failed(found.failures)
