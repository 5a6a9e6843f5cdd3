"""A Redis server of one's own, on a free port of this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from debian import program

__all__ = ["RedisServer"]


class RedisServer:
    """Runs from the beginning; what it holds survives :meth:`stop` and :meth:`start` if ``keeps``.

    Tests that ask for one are skipped where there is no ``redis-server`` and it cannot be installed.
    """

    def __init__(self, directory: Path, *, password: str | None = None, keeps: bool = False) -> None:
        self._program = program("redis-server", "redis-server")
        self.password = password
        directory.mkdir(parents=True, exist_ok=True)
        self._settings = ["--dir", str(directory), "--save", "", "--appendonly", "yes" if keeps else "no"]
        self._settings += ["--bind", "127.0.0.1", "--loglevel", "warning"]
        self._settings += [] if password is None else ["--requirepass", password]
        for _ in range(5):  # somebody else may take the port first
            self.port = _free_port()
            if self._begin():
                return
        raise RuntimeError("redis-server does not start")

    @property
    def url(self) -> str:
        """With the password."""
        login = "" if self.password is None else f":{self.password}@"
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        """A patient one."""
        return Redis(port=self.port, password=self.password, socket_timeout=10)

    def start(self) -> None:
        """Start again at the same port."""
        for _ in range(20):
            if self._begin():
                return
        raise RuntimeError(f"redis-server does not start again at port {self.port}")

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def _begin(self) -> bool:
        command = [self._program, "--port", str(self.port), *self._settings]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with self.client() as client:
                    if client.info("server")["process_id"] == self._process.pid:
                        return True
            except RedisError:
                pass
            time.sleep(0.02)
        self.stop()
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
