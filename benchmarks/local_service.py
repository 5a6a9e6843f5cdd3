"""``infnet serve`` in a process of its own, for measurements."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Local", "served"]

_MIB = 2**20


@dataclass(frozen=True)
class Local:
    """A service that runs."""

    port: int
    pid: int
    log_path: Path

    @property
    def url(self) -> str:
        """Of its root."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text(encoding="utf-8")

    @property
    def resident_mb(self) -> float:
        """Memory of its process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _MIB

    @property
    def num_descriptors(self) -> int:
        """Open ones."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def served(model: Path, directory: Path, options: Sequence[str]) -> Iterator[Local]:
    """Serve a bundle or a directory of versions, with its files below a directory, until the end of the block; its
    feature store is filled by then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "infnet", "serve", str(model), "--port", str(port)),
        *("--events", str(directory / "events"), "--state", str(directory / "state"), *options),
    ]
    path = directory / "serve.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, stderr=log)
        service = Local(port, process.pid, path)
        try:
            for _ in range(1200):
                if process.poll() is not None:
                    raise SystemExit(f"infnet serve ended with {process.returncode}: {service.log}")
                try:
                    with urllib.request.urlopen(f"{service.url}/healthz", timeout=1) as answer:
                        if b'"status":"ok"' in answer.read():
                            break
                except OSError:
                    pass
                time.sleep(0.1)
            yield service
        finally:
            process.terminate()
            process.wait(30)
