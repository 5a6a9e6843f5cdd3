import asyncio
import json

import pytest
from starlette.requests import Request

from infnet.errors import DataError
from infnet.serving import guard as module
from infnet.serving.guard import BodyTooLargeError, Guard, read_body
from infnet.serving.metrics import ServiceMetrics
from service_parts import SECRET, count


class Exchange:
    """One request to a guarded application, and what became of it."""

    def __init__(self, app, *parts, path="/v1/rank", method="POST", headers=(), has_room=True, kind="http"):
        self.metrics, self.sent, self.asked = ServiceMetrics(), [], 0
        self._parts = list(parts)
        guard = Guard(
            app,
            metrics=self.metrics,
            endpoints=frozenset({"/v1/rank", "/v1/events"}),
            sheds=frozenset({"/v1/rank"}),
            has_room=lambda: has_room,
        )
        self.scope = {"type": kind, "method": method, "path": path, "headers": list(headers), "query_string": b""}
        asyncio.run(guard(self.scope, self._receive, self._send))

    async def _receive(self):
        self.asked += 1
        if not self._parts:
            return {"type": "http.disconnect"}
        part = self._parts.pop(0)
        if part is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}

    async def _send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        (start,) = [message for message in self.sent if message["type"] == "http.response.start"]
        return start["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent)


async def fine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"kept")]})
    await send({"type": "http.response.body", "body": b"fine"})


async def fails(scope, receive, send):
    raise ValueError(SECRET)


async def fails_midway(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fi", "more_body": True})
    raise ValueError(SECRET)


def reads(limit, into):
    async def app(scope, receive, send):
        into.append(await read_body(Request(scope, receive), limit))
        await fine(scope, receive, send)

    return app


def test_an_answer_goes_through_as_it_is_with_an_id_of_the_request():
    exchange = Exchange(fine)
    assert (exchange.status, exchange.body, exchange.headers[b"x-own"]) == (200, b"fine", b"kept")
    other = Exchange(fine)
    assert exchange.headers[b"x-request-id"] != other.headers[b"x-request-id"]
    assert len(exchange.headers[b"x-request-id"]) == 32


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"abc-123", b"abc-123"),
        (b"x" * 500, b"x" * 128),
        (b"two words", b"two words"),
        (b"", None),
        (b"line\r\nset-cookie: a=b", None),
        (b"nul\x00", None),
        ("naïve".encode(), None),
        (b"\xff\xfe", None),
    ],
)
def test_a_requests_own_id_comes_back_if_it_is_plain_text(given, kept):
    found = Exchange(fine, headers=[(b"x-request-id", given)]).headers[b"x-request-id"]
    assert found == kept if kept is not None else found.isalnum()


def test_without_room_ranking_is_told_to_come_back_before_anything_is_read():
    exchange = Exchange(fine, b"body", has_room=False)
    assert exchange.status == 503
    assert exchange.asked == 0
    assert exchange.headers[b"retry-after"] == b"1"
    assert exchange.headers[b"content-type"] == b"application/json"
    assert exchange.headers[b"content-length"] == str(len(exchange.body)).encode()
    assert "try again" in json.loads(exchange.body)["error"]
    assert b"x-request-id" in exchange.headers
    assert count(exchange.metrics, "infnet_requests_total", endpoint="/v1/rank", code="503") == 1


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/rank"), ("POST", "/v1/events"), ("GET", "/metrics")])
def test_only_ranking_is_shed(method, path):
    assert Exchange(fine, method=method, path=path, has_room=False).status == 200


def test_a_failure_nobody_foresaw_is_answered_without_its_inside():
    exchange = Exchange(fails, headers=[(b"x-request-id", b"abc")])
    assert exchange.status == 500
    assert exchange.headers[b"x-request-id"] == b"abc"
    said = json.loads(exchange.body)["error"]
    assert "internal error" in said
    assert SECRET not in said
    assert "ValueError" not in said
    assert count(exchange.metrics, "infnet_requests_total", code="500") == 1


def test_an_answer_that_has_begun_is_not_begun_again():
    exchange = Exchange(fails_midway)
    assert exchange.status == 200
    assert exchange.body == b"fi"


def test_answers_are_counted_and_timed_by_endpoint_and_unknown_paths_as_one():
    for path, endpoint in (("/v1/rank", "/v1/rank"), ("/v1/users/u1", "other"), ("/x" * 999, "other")):
        metrics = Exchange(fine, path=path).metrics
        assert count(metrics, "infnet_requests_total", endpoint=endpoint, code="200") == 1
        assert count(metrics, "infnet_request_seconds_count", endpoint=endpoint) == 1
        assert count(metrics, "infnet_requests_total") == 1


def test_a_client_that_hangs_up_is_no_failure_of_the_service():
    async def reads_all(scope, receive, send):
        await read_body(Request(scope, receive), 100)

    exchange = Exchange(reads_all)
    assert count(exchange.metrics, "infnet_requests_total", code="500") == 0


def test_what_is_no_request_goes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    exchange = Exchange(app, kind="lifespan")
    assert seen == ["lifespan"]
    assert count(exchange.metrics, "infnet_requests_total") == 0


def test_routes_know_when_the_request_arrived():
    exchange = Exchange(fine)
    assert exchange.scope["state"]["arrived"] > 0


def test_a_body_comes_in_parts_up_to_the_limit():
    into = []
    assert Exchange(reads(8, into), b"abc", b"", b"defgh").status == 200
    assert Exchange(reads(8, into), b"").status == 200
    assert into == [b"abcdefgh", b""]


@pytest.mark.parametrize("parts", [[b"abcdefghi"], [b"abcdef", b"ghi"], [b"abcdef", b"ghi", None]])
def test_a_body_beyond_the_limit_is_not_read_on(parts):
    with pytest.raises(BodyTooLargeError, match="more than 8 bytes"):
        asyncio.run(read_body(request_of(parts), 8))


def test_a_body_that_says_it_is_too_large_is_not_read_at_all():
    with pytest.raises(BodyTooLargeError, match="more than 8 bytes"):
        asyncio.run(read_body(request_of([None], (b"content-length", b"9")), 8))


@pytest.mark.parametrize("told", [b"3", b"8", b"", b"many", b"-1", b"0x9", "९".encode()])
def test_a_length_that_is_untrue_or_none_changes_nothing(told):
    assert asyncio.run(read_body(request_of([b"abcdefgh"], (b"content-length", told)), 8)) == b"abcdefgh"


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "_BODY_S", 0.02)
    with pytest.raises(DataError, match="did not arrive") as caught:
        asyncio.run(read_body(request_of([b"abc", None]), 8))
    assert not isinstance(caught.value, BodyTooLargeError)


def request_of(parts, *headers):
    waiting = list(parts)

    async def receive():
        part = waiting.pop(0)
        if part is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    return Request({"type": "http", "method": "POST", "headers": [*headers]}, receive)
