"""A Redis server in a process of its own, for measurements."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = ["running_redis"]


@contextmanager
def running_redis(directory: Path) -> Iterator[str]:
    """Run one, with what it holds in a directory and the persistence of a deployment; gives its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is missing; install it (Debian: apt-get install redis-server)")
    directory.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    process = subprocess.Popen([*command, "--appendonly", "yes", "--loglevel", "warning"], stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port) as client:
            for _ in range(100):
                try:
                    client.ping()
                    break
                except RedisConnectionError:
                    time.sleep(0.05)
            else:
                raise SystemExit("redis-server does not start")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)
