"""``infnet serve`` in a process of its own, for measurements."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["served"]


@contextmanager
def served(model: Path, directory: Path, options: Sequence[str]) -> Iterator[int]:
    """Serve a bundle or a directory of versions, with its files below a directory; gives the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "infnet", "serve", str(model), "--port", str(port)),
        *("--events", str(directory / "events"), "--state", str(directory / "state"), *options),
    ]
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise SystemExit(f"infnet serve ended with {process.returncode}: {Path(log.name).read_text()}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(30)
