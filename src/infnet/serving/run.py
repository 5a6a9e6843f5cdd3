"""Running the service: one process, or several that share a port."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import tempfile
from contextlib import closing
from ipaddress import ip_address
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from infnet.errors import SpecError
from infnet.experiments.reading import DECLARED
from infnet.serving.app import create_app
from infnet.serving.arms import Arms
from infnet.serving.event_log import EventLog
from infnet.serving.logs import set_up_logs
from infnet.serving.settings import ServeSettings
from infnet.serving.system import fill_store, open_feature_store
from infnet.training.checkpoint import write_atomically

__all__ = ["app_of_environment", "serve"]

_SETTINGS, _TOKEN = "INFNET_SERVE", "INFNET_TOKEN"
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_BACKLOG = 1024


def serve(settings: ServeSettings, token: str | None) -> None:
    """Serve until told to stop by SIGINT or SIGTERM; requests under way are answered first.

    Args:
        settings: Of the service.
        token: For the endpoints that change anything.

    Raises:
        SpecError: Several processes without Redis, an open address without a token, or a port that is taken.
        ArtifactError: The model cannot be served.
        StoreError: The feature store or the event log cannot be opened.
    """
    if settings.workers > 1 and settings.store is None:
        raise SpecError(f"--workers {settings.workers}: the embedded store is for one process; give --store redis://..")
    if token is None and not _is_loopback(settings.host):
        raise SpecError(
            f"--host {settings.host}: others can reach it, and without a token anybody may send events; set {_TOKEN}"
        )
    set_up_logs(settings.log_level)
    bound = _bind(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)  # while nothing is served yet; uvicorn raises the signal again at its end
    if settings.workers == 1:
        config = _config(_loaded(settings, token), settings)
        _note_experiments(settings)
        uvicorn.Server(config).run(sockets=[bound])
        return
    _try_out(settings)
    _note_experiments(settings)
    os.environ[_SETTINGS] = settings.model_dump_json()
    if token is not None:
        os.environ[_TOKEN] = token
    own = None if _MULTIPROCESS in os.environ else tempfile.mkdtemp(prefix="infnet-metrics-")
    os.environ.setdefault(_MULTIPROCESS, own or "")
    config = _config("infnet.serving.run:app_of_environment", settings)
    try:
        Multiprocess(config, [bound]).run()
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def app_of_environment() -> FastAPI:
    """The application of a process that :func:`serve` started."""
    settings = ServeSettings.model_validate_json(os.environ[_SETTINGS])
    set_up_logs(settings.log_level)
    return _loaded(settings, os.environ.get(_TOKEN))


def _loaded(settings: ServeSettings, token: str | None) -> FastAPI:
    app = create_app(settings, token)
    # What is there by now stays. To look through it for garbage takes the collector longer than a request has.
    gc.collect()
    gc.freeze()
    return app


def _config(app: FastAPI | str, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=settings.workers,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=60,
    )


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _bind(settings: ServeSettings) -> socket.socket:
    """Taken before anything is loaded, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise SpecError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror}); give another"
        ) from error
    bound.listen(_BACKLOG)
    bound.set_inheritable(True)
    return bound


def _try_out(settings: ServeSettings) -> None:
    """Fill the store once, and find out what cannot be had, before several processes would each do it."""
    arms = Arms.open(settings)
    live = arms.default.holder.live
    with closing(open_feature_store(settings, live)) as store:
        if settings.loads:
            fill_store(store, live)
    EventLog(settings.events, fsync=settings.fsync).close()


def _note_experiments(settings: ServeSettings) -> None:
    """Put the experiments beside the log that is going to tell of them."""
    if settings.experiments is not None:
        write_atomically(settings.events / DECLARED, settings.experiments.read_text(encoding="utf-8"))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
