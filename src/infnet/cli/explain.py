"""``infnet explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infnet.evaluation.attention_figures import event_figure, field_figure
from infnet.evaluation.explain import explain_run
from infnet.evaluation.figures import check_figures, save_figure
from infnet.training.checkpoint import write_atomically
from infnet.training.run import Run

__all__ = ["explain_command"]


def explain_command(
    run: Annotated[Path, typer.Argument(help="Directory that 'infnet train --out' wrote.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Directory for attention.json and figures.", show_default=False)],
    user: Annotated[str | None, typer.Option(help="Key of a user; all users by default.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    average: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=512,
            help="Requests to average: the user's latest, by default the last one alone; 256 of all users.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the dataset is, if it has moved since training.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the weights as JSON.")] = False,
) -> None:
    """Show what INFNet's tasks, shared tasks and proxies attend to: which fields and which past events, block by block.

    Example: infnet explain runs/first --user 4711 --out explained
    """
    check_figures()
    explanation = explain_run(Run.load(run), split, user=user, num_requests=average, data=data)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in (("fields.png", field_figure(explanation)), ("events.png", event_figure(explanation))):
        (out / name).unlink(missing_ok=True)
        if figure is not None:
            save_figure(figure, out / name)
    document = json.dumps(explanation.as_json())
    write_atomically(out / "attention.json", document + "\n")
    if as_json:
        typer.echo(document)
    else:
        Console().print(explanation.as_table())
