"""``infnet publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infnet.errors import SpecError
from infnet.serving.publication import ModelDirectory

__all__ = ["publish_command"]


def publish_command(
    to: Annotated[Path, typer.Option(help="Directory of versions that servers watch.", show_default=False)],
    bundle: Annotated[
        Path | None, typer.Argument(help="Directory that 'infnet export' or 'infnet update' wrote.", show_default=False)
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Make the previous version current again.")] = False,
    keep: Annotated[int, typer.Option(min=2, help="Versions to keep.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a bundle the one that servers of a directory serve, or go back to the one before.

    Example: infnet publish bundle-2 --to live
    """
    directory = ModelDirectory(to)
    if rollback:
        if bundle is not None:
            raise SpecError(f"--rollback: found the bundle {bundle} as well; give one or the other")
        version = directory.rollback()
    elif bundle is None:
        raise SpecError("BUNDLE is missing; give one, or --rollback")
    else:
        version = directory.publish(bundle, keep=keep)
    now = directory.publication()
    if as_json:
        typer.echo(now.model_dump_json())
        return
    typer.echo(f"{to}: version {version} is current")
    if now.previous:
        typer.echo(f"Back to {now.previous[-1]}: infnet publish --rollback --to {to}")
