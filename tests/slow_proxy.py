"""A server that passes everything on to another one, and its answers back, after a delay."""

from __future__ import annotations

import socket
import threading
import time

__all__ = ["SlowProxy"]


class SlowProxy:
    """Stands before a port of this machine; the delay may be changed at any time.

    Attributes:
        port: Its own.
        delay_s: Before each piece of an answer.
    """

    def __init__(self, target: int) -> None:
        self._target, self.delay_s = target, 0.0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no further connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if is_answer and self.delay_s:
                    time.sleep(self.delay_s)
                target.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            target.close()
