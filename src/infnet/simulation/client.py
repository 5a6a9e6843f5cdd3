"""A client of the ranking service: requests for pages in batches, events, over connections that stay open."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from infnet.errors import ServiceError, SpecError
from infnet.serving.wire import MSGPACK, BatchBody, BatchReply, EventBody, ModelReply, RankBody, RankReply

__all__ = ["ServiceClient"]

_TRIES, _PAUSE_S = 60, 0.25
"""A service that says 503 is asked again so often, after such a pause."""
_TIMEOUT_S = 60.0
_IDLE_S = 4.0
"""A connection that was not used for so long is opened anew, before the service closes it (uvicorn: after 5 s)."""

_R = TypeVar("_R")


class ServiceClient:
    """Asks one service over a few connections at once; a context manager.

    Args:
        url: ``http://host:port``.
        token: For events, if the service wants one.
        connections: At once.

    Attributes:
        num_retried: Answers of 503, after each of which the same was asked again.

    Raises:
        SpecError: The URL is none.
    """

    def __init__(self, url: str, *, token: str | None = None, connections: int = 2) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise SpecError(f"--url {url}: wanted http://HOST:PORT")
        self.url, self.num_retried = url, 0
        self._address = (parts.hostname, parts.port or 80)
        self._token = token
        self._pool = ThreadPoolExecutor(connections)
        self._idle: SimpleQueue[tuple[http.client.HTTPConnection, float]] = SimpleQueue()
        for _ in range(connections):
            self._idle.put((http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S), time.monotonic()))

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        while not self._idle.empty():
            self._idle.get()[0].close()

    def model(self) -> ModelReply:
        """What is served.

        Raises:
            ServiceError: It does not answer.
        """
        return msgspec.json.decode(self._ask("GET", "/v1/model", None), type=ModelReply)

    def rank(self, batches: Sequence[Sequence[RankBody]]) -> list[RankReply]:
        """Answers to requests, in their order; those of a batch travel together.

        Raises:
            ServiceError: A request is not answered.
        """

        def ask(batch: Sequence[RankBody]) -> list[RankReply]:
            raw = self._ask("POST", "/v1/rank/batch", msgspec.msgpack.encode(BatchBody(requests=list(batch))), MSGPACK)
            replies = []
            for entry in msgspec.msgpack.decode(raw, type=BatchReply).replies:
                if entry.reply is None:
                    raise ServiceError(f"{self.url}: does not answer a request ({entry.error})")
                replies.append(entry.reply)
            return replies

        return [reply for replies in self._pool.map(ask, batches) for reply in replies]

    def rank_one(self, request: RankBody) -> tuple[RankReply, float]:
        """The answer to one request, and the seconds it took.

        Raises:
            ServiceError: It is not answered.
        """
        body = msgspec.msgpack.encode(request)
        began = time.perf_counter()
        raw = self._ask("POST", "/v1/rank", body, MSGPACK)
        seconds = time.perf_counter() - began
        return msgspec.msgpack.decode(raw, type=RankReply), seconds

    def tell(self, batches: Sequence[Sequence[EventBody]]) -> int:
        """Send events; how many were accepted.

        Raises:
            ServiceError: They are not taken, or one is rejected.
        """

        def send(batch: Sequence[EventBody]) -> int:
            reply = json.loads(self._ask("POST", "/v1/events", msgspec.json.encode(batch)))
            if reply["rejected"]:
                raise ServiceError(f"{self.url}: rejects an event ({reply['rejected'][0]['reason']})")
            return int(reply["accepted"])

        return sum(self._pool.map(send, batches))

    def _ask(self, method: str, path: str, body: bytes | None, form: str = "application/json") -> bytes:
        headers = {"Content-Type": form, "Accept": form}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        for _ in range(_TRIES):
            status, raw = self._exchange(method, path, body, headers)
            if status == 200:
                return raw
            if status != 503:
                raise ServiceError(f"{self.url}{path}: answers {status} ({_reason(raw)})")
            self.num_retried += 1
            time.sleep(_PAUSE_S)
        raise ServiceError(f"{self.url}{path}: has too much to do; use fewer --connections or a smaller --batch")

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        connection, used_at = self._idle.get()
        if time.monotonic() - used_at > _IDLE_S:
            connection.close()  # the next request opens it again
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServiceError(
                f"{self.url}: does not answer ({error or type(error).__name__}); is it served?"
            ) from error
        finally:
            self._idle.put((connection, time.monotonic()))


def _reason(raw: bytes) -> Any:
    try:
        return json.loads(raw)["error"]
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
