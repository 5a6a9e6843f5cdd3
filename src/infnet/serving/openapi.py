"""How the routes are described in OpenAPI, with examples that work as they stand."""

from __future__ import annotations

from typing import Any

from infnet.serving.wire import JSON, MSGPACK, schemas

__all__ = ["EXAMPLE_EVENTS", "EXAMPLE_RANK", "components", "described"]

EXAMPLE_RANK: dict[str, Any] = {
    "request_id": "r1",
    "user_id": "123",
    "candidates": [{"item_id": "7"}, {"item_id": "8"}],
    "limit": 20,
}
EXAMPLE_EVENTS: list[dict[str, Any]] = [
    {"request_id": "r1", "item_id": "7", "type": "impression"},
    {"request_id": "r1", "item_id": "7", "type": "click"},
]
_ERRORS = {
    401: "The token is missing or wrong.",
    413: "The body is too large.",
    422: "The body does not fit; says where, what was found and what was wanted.",
    503: "Too much to do, or a part of the service is down; come back after the Retry-After header's seconds.",
}
_references, _components = schemas()


def components() -> dict[str, Any]:
    """Schemas of all bodies and replies."""
    return dict(_components)


def described(
    takes: dict[str, Any] | str | None, gives: str, example: Any = None, *, binary: bool = False, token: bool = False
) -> dict[str, Any]:
    """Keyword arguments of a route.

    Args:
        takes: Name of the body's type, or its schema; None without a body.
        gives: Name of the reply's type.
        example: Of the body.
        binary: Whether both may be MessagePack as well.
        token: Whether a token is wanted.
    """
    forms = (JSON, MSGPACK) if binary else (JSON,)
    error = {"content": {JSON: {"schema": _references["ErrorReply"]}}}
    codes = [code for code in _ERRORS if takes is not None or code == 503]
    responses: dict[int | str, dict[str, Any]] = {
        code: {"description": _ERRORS[code], **error} for code in codes if code != 401 or token
    }
    schema = _references[gives]
    responses[200] = {"description": "Done.", "content": {form: {"schema": schema} for form in forms}}
    extra: dict[str, Any] = {}
    if takes is not None:
        body = _references[takes] if isinstance(takes, str) else takes
        content: dict[str, Any] = {form: {"schema": body} for form in forms}
        content[JSON]["examples"] = {"small": {"value": example}}
        extra["requestBody"] = {"required": True, "content": content}
    if token:
        extra["security"] = [{"token": []}]
    return {"responses": responses, "openapi_extra": extra}
