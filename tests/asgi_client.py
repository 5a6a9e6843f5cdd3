"""A client of an application in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

__all__ = ["AsgiClient"]

_T = TypeVar("_T")


class AsgiClient:
    """Speaks HTTP with an application whose event loop runs in a thread; as a context manager, while it is started.

    Every method may be called from several threads.

    Attributes:
        answers: All that came back.
    """

    def __init__(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://service", timeout=20)
        self._lifespan = app.router.lifespan_context(app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.answers: list[httpx.Response] = []

    def __enter__(self) -> AsgiClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.close()

    def start(self) -> None:
        """Start the application."""
        self.run(self._lifespan.__aenter__())

    def end(self) -> None:
        """Tell the application to end, and wait until it has; what is under way goes on."""
        self.run(self._lifespan.__aexit__(None, None, None))

    def close(self) -> None:
        """End the event loop."""
        self.run(self._http.aclose())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.all([(method, path, options)])[0]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """Bytes as they are, everything else as JSON."""
        return self.request("POST", path, **_content(body), **options)

    def put(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.request("PUT", path, **_content(body), **options)

    def all(self, requests: Sequence[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
        """Answers to requests that are sent at the same moment, in their order."""

        async def gathered() -> list[httpx.Response]:
            sent = (self._http.request(method, path, **options) for method, path, options in requests)
            return [*await asyncio.gather(*sent)]

        answers = self.run(gathered())
        self.answers += answers
        return answers

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What a coroutine gives in the application's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def _content(body: Any) -> dict[str, Any]:
    return {"content": body} if isinstance(body, bytes) else {"json": body}
