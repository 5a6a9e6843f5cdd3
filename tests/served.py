"""The service in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

__all__ = ["PATIENT", "Service", "free_port", "served"]

_STARTS_WITHIN_S = 120
PATIENT = ("--deadline-ms", "1000")
"""Where other work goes on beside the service, on the cores that answer: that there is too much to do is told with 503,
or answered by popularity, which is seen elsewhere."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    """``infnet serve`` on a free port, with its files below a directory."""

    def __init__(self, model: Path, directory: Path, options: Sequence[str] = (), **environment: str) -> None:
        self.directory, self.port = directory, free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self.log_path = directory / "serve.log"
        self._command = [
            *(sys.executable, "-m", "infnet", "serve", str(model), "--port", str(self.port)),
            *("--events", str(directory / "events"), "--state", str(directory / "state"), *options),
        ]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10)
        self.start()

    def start(self) -> None:
        """Start it, again after it was ended."""
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(self._command, stderr=log, stdout=log, env=self._environment)
        end = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}: {self.log}")
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"did not start: {self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def rank(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/rank", json=body)

    def tell(self, *events: dict[str, Any]) -> httpx.Response:
        return self.client.post("/v1/events", json=list(events))

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def records(self, stream: str) -> list[dict[str, Any]]:
        """What a stream of the event log holds."""
        files = sorted((self.directory / "events" / stream).glob("*.ndjson"))
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


@contextmanager
def served(model: Path, directory: Path, *options: str, **environment: str) -> Iterator[Service]:
    service = Service(model, directory, options, **environment)
    try:
        yield service
    finally:
        service.stop()
        service.client.close()
