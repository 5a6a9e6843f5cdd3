"""``infnet rank``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from infnet.errors import DataError, SpecError
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import RankedItem, Ranker

__all__ = ["rank_command"]


def rank_command(
    bundle: Annotated[Path, typer.Argument(help="Directory that 'infnet export --out' wrote.", show_default=False)],
    user: Annotated[str, typer.Option(help="Key of the user.", show_default=False)],
    items: Annotated[Path, typer.Option(help="Text file with an item key per line.", show_default=False)],
    by: Annotated[str | None, typer.Option(help="Task to order by; the first by default.", show_default=False)] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Value of a context feature; repeatable.", show_default=False),
    ] = None,
    time_ms: Annotated[
        int | None, typer.Option(help="Time of the request, ms since 1970; now by default.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show so many.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank items for a user, by what was known of both when the bundle's dataset ended.

    Example: infnet rank bundle --user 123 --items items.txt --context tab=1 --limit 10
    """
    ranker = Ranker.load(bundle)
    request = RankRequest(user, _read_items(items), dict(_pair(text) for text in context or []), time_ms=time_ms)
    ranked = ranker.rank(request, by)[:limit]
    strangers = int((ranker.bundle.items.find(request.candidates) == 0).sum())
    if strangers:
        typer.echo(f"{strangers} of {len(request.candidates)} items are unknown and scored as new ones", err=True)
    if not ranker.bundle.users.find([user])[0]:
        typer.echo(f"user '{user}' is unknown and treated as a new one", err=True)
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in ranked]))
    else:
        Console().print(_table(ranked, ranker.tasks, by or ranker.tasks[0]))


def _read_items(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a text file with an item key per line") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no UTF-8 text ({error.reason}); give a text file with an item key per line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise SpecError(f"--context: found '{text}', wanted NAME=VALUE such as tab=1")
    return name, value


def _table(ranked: list[RankedItem], tasks: tuple[str, ...], by: str) -> Table:
    table = Table(box=SIMPLE_HEAD, caption=f"ordered by {by}")
    for heading in ("rank", "item", *tasks):
        table.add_column(heading, justify="left" if heading == "item" else "right")
    for place, item in enumerate(ranked, start=1):
        table.add_row(str(place), item.item_id, *(f"{item.tasks[task]:.5g}" for task in tasks))
    return table
