"""What stands before every route: limits, shedding, request ids, times, and answers that give nothing away."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import structlog
from starlette.requests import ClientDisconnect, Request

from infnet.errors import DataError
from infnet.serving.loop_lag import LoopLag
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.wire import JSON, ErrorReply, encode

__all__ = ["BodyTooLargeError", "Guard", "UnreadBodyError", "read_body"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_log = structlog.get_logger(__name__)
_BODY_S = 10.0
_ID_HEADER = b"x-request-id"


class UnreadBodyError(DataError):
    """A body that was not read to its end; nothing else can come over its connection."""


class BodyTooLargeError(UnreadBodyError):
    """A body beyond the limit."""


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        metrics: Counts answers by endpoint and status.
        endpoints: Paths to count under their own names.
        sheds: Paths of which ``has_room`` is asked before anything is read; 503 when it says no.
        has_room: Whether one more request would be answered in time.
        lag: Of the event loop: a request is taken to have arrived so long before it is seen.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: ServiceMetrics,
        endpoints: frozenset[str],
        sheds: frozenset[str],
        has_room: Callable[[], bool],
        lag: LoopLag | None = None,
    ) -> None:
        self._app, self._metrics = app, metrics
        self._endpoints, self._sheds, self._has_room = endpoints, sheds, has_room
        self._lag = lag or LoopLag()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's message."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.perf_counter() - self._lag.seconds
        given = next((value for name, value in scope["headers"] if name == _ID_HEADER), b"")
        trace_id = given[:128] if given.isascii() and given.decode("latin-1").isprintable() else b""
        trace_id = trace_id or uuid.uuid4().hex.encode()
        path: str = scope["path"]
        endpoint = path if path in self._endpoints else "other"
        scope.setdefault("state", {})["arrived"] = arrived
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID_HEADER, trace_id)]
            await send(message)

        try:
            if path in self._sheds and scope["method"] == "POST" and not self._has_room():
                await _answer(sending, 503, "too many requests are waiting; try again", {b"retry-after": b"1"})
            else:
                with structlog.contextvars.bound_contextvars(trace_id=trace_id.decode("latin-1")):
                    await self._app(scope, receive, sending)
        except ClientDisconnect:
            status = 0  # nobody is there to be answered
        except Exception:
            _log.exception("request_failed", path=path, trace_id=trace_id.decode("latin-1"))
            if not status:
                await _answer(sending, 500, "internal error; the log has it under this answer's x-request-id")
        finally:
            self._metrics.answered(endpoint, status or 499, arrived)


async def _answer(send: Send, status: int, error: str, headers: dict[bytes, bytes] | None = None) -> None:
    body = encode(ErrorReply(error), JSON)
    fields = {b"content-type": JSON.encode(), b"content-length": str(len(body)).encode(), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": [*fields.items()]})
    await send({"type": "http.response.body", "body": body})


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body.

    Raises:
        BodyTooLargeError: It has more than ``limit`` bytes.
        UnreadBodyError: It did not arrive within ten seconds.
    """
    told = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(told) if told.isdecimal() else 0
    if size <= limit:
        size = 0
        try:
            async with asyncio.timeout(_BODY_S):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > limit:
                        break
        except TimeoutError as error:
            raise UnreadBodyError(f"the body did not arrive within {_BODY_S:.0f} s") from error
    if size > limit:
        raise BodyTooLargeError(f"the body has more than {limit} bytes; send fewer candidates or events at a time")
    return b"".join(parts)
