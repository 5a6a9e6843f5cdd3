"""A service of its own for a simulation: ``infnet serve --replay`` on this machine, and ``infnet update`` beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

from infnet.errors import ServiceError

__all__ = ["LocalService"]

_STARTS_WITHIN_S, _ENDS_WITHIN_S, _SWAPS_WITHIN_S = 120.0, 60.0, 60.0


class LocalService:
    """A context manager; the service is ready when it is entered.

    Args:
        model: A bundle or a directory of versions.
        events: Directory of its event log.
        work: Directory of its feature store and of its own log.
        options: More of ``infnet serve``.

    Attributes:
        url: Where it answers.
    """

    def __init__(self, model: Path, events: Path, work: Path, options: Sequence[str] = ()) -> None:
        self._events, self._log = events, work / "service.log"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "infnet", "serve", str(model), "--port", str(port), "--replay"),
            *("--events", str(events), "--state", str(work / "state"), "--fsync", "never"),
            *("--deadline-ms", "10000", *options),
        ]
        work.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LocalService:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=_environment())
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._end()

    def update(self, live: Path, as_of_ms: int) -> dict[str, Any]:
        """Go on training a directory's current model with the log, publish it, and wait until it is served.

        Args:
            live: Directory of versions.
            as_of_ms: Labels are joined as of then.

        Returns:
            What ``infnet update --json`` says; ``{"refused": reason}`` if its guard kept the model.

        Raises:
            ServiceError: It fails, or the service does not take the new model.
        """
        as_of = datetime.fromtimestamp(as_of_ms / 1000, UTC)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "infnet", "update", str(live), "--events", str(self._events)),
                *("--to", str(live), "--as-of", f"{as_of:%Y-%m-%dT%H:%M:%S}", "--unsure", "accept", "--json"),
            ],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode and '"guard"' in done.stdout:
            return {"refused": said}
        if done.returncode:
            raise ServiceError(f"{live}: cannot be updated ({said})")
        report: dict[str, Any] = json.loads(done.stdout)
        self._wait_until_served(report["version"])
        return report

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"{self.url}/readyz", timeout=1):
                return
            time.sleep(0.1)
        last = (self._log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        raise ServiceError(f"the service does not start ({last}); see {self._log}")

    def _wait_until_served(self, version: str) -> None:
        end = time.monotonic() + _SWAPS_WITHIN_S
        while time.monotonic() < end:
            lines = self._log.read_text(errors="replace").splitlines()
            if any('"model_swapped"' in line and version in line for line in lines):
                return
            time.sleep(0.1)
        raise ServiceError(f"the service does not take version {version}; see {self._log}")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
