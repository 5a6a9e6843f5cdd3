"""``infnet serve``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infnet.errors import DataError, SpecError

__all__ = ["serve_command"]


class Fsync(StrEnum):
    """Of the event log."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


class LogLevel(StrEnum):
    """Of the log lines on standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def serve_command(
    model: Annotated[
        Path,
        typer.Argument(help="A bundle, or the directory of versions of 'infnet publish --to'.", show_default=False),
    ],
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Redis for features; embedded if none.", show_default=False)
    ] = None,
    state: Annotated[Path, typer.Option(help="Directory of the embedded feature store.")] = Path("state"),
    events: Annotated[Path, typer.Option(help="Directory of the event log.")] = Path("events"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes; several need Redis.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Ranking threads of a process.")] = 2,
    by: Annotated[
        str | None, typer.Option(help="Task whose prediction is the score; the first by default.", show_default=False)
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Ranking policy (YAML), read again when it changes.", show_default=False)
    ] = None,
    experiments: Annotated[
        Path | None,
        typer.Option(help="Experiments (YAML): who gets which policy or bundle.", show_default=False),
    ] = None,
    deadline_ms: Annotated[float, typer.Option(min=1, max=10_000, help="From request to answer.")] = 100.0,
    store_timeout_ms: Annotated[float, typer.Option(min=1, max=10_000, help="After which Redis has failed.")] = 30.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; beyond, 503.")] = 256,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Small requests computed together.")] = 32,
    batch_wait_ms: Annotated[float, typer.Option(min=0, max=100, help="A small request waits for others.")] = 0.0,
    max_candidates: Annotated[int, typer.Option(min=1, help="Of one request.")] = 10_000,
    fsync: Annotated[Fsync, typer.Option(help="When events reach the disk.")] = Fsync.INTERVAL,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token for what changes anything; or INFNET_TOKEN.", show_default=False),
    ] = None,
    load: Annotated[bool, typer.Option(help="Fill a new store with the bundle's histories.")] = True,
    replay: Annotated[
        bool, typer.Option("--replay", help="Requests and events say themselves when they were: for simulations.")
    ] = False,
    tracing: Annotated[bool, typer.Option("--tracing", help="Send OpenTelemetry spans.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Of the log lines.")] = LogLevel.INFO,
) -> None:
    """Serve a bundle over HTTP: ranking, events, features; its documentation is at /docs.

    Example: infnet serve bundle --store redis://127.0.0.1:6379/0 --workers 2
    """
    try:
        from infnet.serving.run import serve
        from infnet.serving.settings import ServeSettings
    except ImportError as error:
        raise SpecError(f"serving needs {error.name}; install it with: pip install 'infnet[serve]'") from error
    settings = ServeSettings(
        model=model,
        state=state,
        events=events,
        store=store,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        by=by,
        policy=policy,
        experiments=experiments,
        deadline_ms=deadline_ms,
        store_timeout_ms=store_timeout_ms,
        queue=queue,
        batch=batch,
        batch_wait_ms=batch_wait_ms,
        max_candidates=max_candidates,
        fsync=fsync.value,
        replays=replay,
        loads=load,
        tracing=tracing,
        log_level=log_level.value,
    )
    serve(settings, _token(token_file))


def _token(file: Path | None) -> str | None:
    """From a file, else from the environment."""
    if file is None:
        return os.environ.get("INFNET_TOKEN") or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text; give a file with the token in it") from error
    if not token:
        raise DataError(f"{file}: is empty; give a file with the token in it")
    return token
