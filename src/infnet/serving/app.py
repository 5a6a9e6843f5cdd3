"""The service over HTTP."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException

import infnet
from infnet.errors import DataError, InfnetError, SpecError
from infnet.serving.guard import BodyTooLargeError, Guard, UnreadBodyError, read_body
from infnet.serving.loop_lag import LoopLag
from infnet.serving.metrics import CONTENT_TYPE_LATEST
from infnet.serving.openapi import EXAMPLE_EVENTS, EXAMPLE_RANK, components, described
from infnet.serving.settings import ServeSettings
from infnet.serving.system import System
from infnet.serving.wire import (
    JSON,
    MSGPACK,
    BatchBody,
    BatchEntry,
    BatchReply,
    ErrorReply,
    FeaturesBody,
    FeaturesReply,
    Format,
    RankBody,
    RankReply,
    decode,
    encode,
)

__all__ = ["create_app"]

_log = structlog.get_logger(__name__)
_RANKING = frozenset({"/v1/rank", "/v1/rank/batch"})
_ENDPOINTS = _RANKING | {"/v1/events", "/v1/model", "/healthz", "/readyz", "/metrics"}
_EVENTS = {"type": "array", "items": {"$ref": "#/components/schemas/EventBody"}}
_LONGEST_ERROR = 500


class _KeyConvertor(StringConvertor):
    """The rest of a path, whatever it is made of: keys may have slashes and line ends."""

    regex = "(?s:.*)"


register_url_convertor("key", _KeyConvertor())


def create_app(settings: ServeSettings, token: str | None = None) -> FastAPI:
    """The application; what it serves with is opened at once and closed when it ends.

    Args:
        settings: Of the service.
        token: What callers of the endpoints that change anything have to bring; None lets everybody in.

    Raises:
        ArtifactError: The model cannot be served.
        StoreError: The feature store or the event log cannot be opened.
    """
    system, lag = System.open(settings), LoopLag()
    limit = int(settings.max_body_mb * 2**20)

    def has_room(more: int = 1) -> bool:
        return system.batcher.has_room(max(0.0, settings.deadline_ms / 1000 - lag.seconds), more)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        system.start()
        watching = asyncio.create_task(lag.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(system.close)

    app = FastAPIOffline(
        title="INFNet ranking service",
        version=infnet.__version__,
        description="Ranks items for users, and takes what happens to them.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(
        Guard,
        metrics=system.metrics,
        endpoints=_ENDPOINTS,
        sheds=_RANKING,
        has_room=has_room,
        lag=lag,
    )
    app.add_exception_handler(InfnetError, _refused)
    app.add_exception_handler(HTTPException, _not_served)
    app.openapi = lambda: _openapi(app, wants_token=token is not None)  # type: ignore[method-assign]

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "send the service's token as 'Authorization: Bearer ..'")

    async def ranked(body: RankBody, arrived: float) -> RankReply:
        ticket = system.service.admit(body, arrived)
        outcome = await system.batcher.answer(ticket)
        if isinstance(outcome, InfnetError):
            raise outcome
        system.answered(ticket, outcome)
        return outcome

    @app.post("/v1/rank", **described("RankBody", "RankReply", EXAMPLE_RANK, binary=True))
    async def rank(request: Request) -> Response:
        """Order candidates for a user, best first."""
        form = _form(request)
        body = decode(await read_body(request, limit), RankBody, form)
        return _reply(request, await ranked(body, request.state.arrived), form)

    @app.post("/v1/rank/batch", **described("BatchBody", "BatchReply", {"requests": [EXAMPLE_RANK]}, binary=True))
    async def rank_batch(request: Request) -> Response:
        """Answer several requests, which share one deadline."""
        form = _form(request)
        body = decode(await read_body(request, limit), BatchBody, form)
        if not has_room(len(body.requests)):
            raise HTTPException(503, "too many requests are waiting; try again", {"Retry-After": "1"})
        arrived = request.state.arrived
        found = await asyncio.gather(*(ranked(each, arrived) for each in body.requests), return_exceptions=True)
        entries = []
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, InfnetError):
                raise each
            entries.append(BatchEntry(each, None) if isinstance(each, RankReply) else BatchEntry(None, _said(each)[1]))
        return _reply(request, BatchReply(entries), form)

    takes_features = described("FeaturesBody", "FeaturesReply", {"features": {}}, token=token is not None)

    @app.post("/v1/events", **described(_EVENTS, "EventsReply", EXAMPLE_EVENTS, token=token is not None))
    async def events(request: Request) -> Response:
        """Take what happened: impressions, and what a user did with them. What is accepted is on disk."""
        allowed(request)
        raw = await read_body(request, limit)
        try:
            each = _parts(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            await asyncio.to_thread(system.ingest.set_aside, raw, "is no JSON")
            raise DataError("the body is no JSON; send a list of events") from error
        return _reply(request, await asyncio.to_thread(system.ingest.take, each), JSON)

    @app.put("/v1/users/{user_id:key}", **takes_features)
    async def put_user(user_id: str, request: Request) -> Response:
        """Set a user's features, in place of the bundle's; those that are left out are missing."""
        return await put(user_id, request, lambda body: system.put_user(user_id, body.features))

    @app.put("/v1/items/{item_id:key}", **takes_features)
    async def put_item(item_id: str, request: Request) -> Response:
        """Set an item's candidate features, for requests that do not bring their own."""
        return await put(item_id, request, lambda body: system.put_item(item_id, body.features))

    async def put(key: str, request: Request, change: Callable[[FeaturesBody], None]) -> Response:
        if not key:
            raise DataError("the key in the path is empty; put it behind the last slash")
        allowed(request)
        body = decode(await read_body(request, limit), FeaturesBody, JSON)
        await asyncio.to_thread(change, body)
        return _reply(request, FeaturesReply(len(body.features)), JSON)

    @app.get("/v1/model", **described(None, "ModelReply"))
    async def model(request: Request) -> Response:
        """What is served."""
        return _reply(request, system.model(), JSON)

    @app.get("/healthz", **described(None, "HealthReply"))
    async def health(request: Request) -> Response:
        """Whether the process lives; if not, restart it."""
        return _reply(request, system.health(), JSON, 200 if system.batcher.is_alive else 503)

    @app.get("/readyz", **described(None, "HealthReply"))
    async def ready(request: Request) -> Response:
        """Whether to send requests here."""
        return _reply(request, system.health(), JSON, 200 if system.is_ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(system.exposition), media_type=CONTENT_TYPE_LATEST)

    return app


def _parts(raw: bytes) -> list[bytes]:
    """The JSON of each element of a list; of what is no list, itself: what is wrong with it is said later."""
    try:
        return [bytes(part) for part in msgspec.json.decode(raw, type=list[msgspec.Raw])]
    except msgspec.ValidationError:
        msgspec.json.decode(raw)  # it may be no JSON behind its beginning
        return [raw]


def _form(request: Request) -> Format:
    """Of the body: JSON unless it says otherwise, whatever clients put there by default."""
    return MSGPACK if "msgpack" in request.headers.get("content-type", "") else JSON


def _reply(request: Request, reply: Any, form: Format, status: int = 200) -> Response:
    accepted = request.headers.get("accept", "")
    if "msgpack" in accepted:
        form = MSGPACK
    elif JSON in accepted:
        form = JSON
    return Response(encode(reply, form), status, media_type=form)


def _said(error: InfnetError) -> tuple[int, str]:
    """Status and message: what a caller can mend is told, what is ours is not."""
    if isinstance(error, BodyTooLargeError):
        return 413, str(error)
    if isinstance(error, DataError | SpecError):
        text = " ".join(str(error).split())
        return 422, text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}.."
    _log.error("request_refused", reason=str(error))
    return 503, "a part of the service does not answer; try again"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, InfnetError)
    status, text = _said(error)
    headers = {"Retry-After": "1"} if status == 503 else {}
    if isinstance(error, UnreadBodyError):
        headers["Connection"] = "close"  # else what is left of the body would be read
    return Response(encode(ErrorReply(text), JSON), status, headers, media_type=JSON)


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(encode(ErrorReply(str(error.detail)), JSON), error.status_code, error.headers, media_type=JSON)


def _openapi(app: FastAPI, *, wants_token: bool) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"] = {"schemas": components()}
        if wants_token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
