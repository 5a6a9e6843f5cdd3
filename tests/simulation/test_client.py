import http.server
import json
import threading
import time
from contextlib import contextmanager

import msgspec
import pytest

from infnet.errors import ServiceError, SpecError
from infnet.serving.wire import BatchBody, BatchEntry, BatchReply, EventBody, ItemReply, RankBody, RankReply
from infnet.simulation import client as client_module
from infnet.simulation.client import ServiceClient


@contextmanager
def answering(answer, idle_s=None):
    """An HTTP server whose replies a function gives: (path, body) -> (status, bytes); the requests' headers beside."""
    headers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_s

        def do_POST(self):
            headers.append(self.headers)
            status, raw = answer(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", headers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ranked(path, body):
    assert path == "/v1/rank/batch"
    requests = msgspec.msgpack.decode(body, type=BatchBody).requests
    entries = [BatchEntry(RankReply(r.request_id, "v", [ItemReply("1", 0.5, {})], []), None) for r in requests]
    return 200, msgspec.msgpack.encode(BatchReply(entries))


def requests(*ids):
    return [RankBody(user_id=1, request_id=name) for name in ids]


def test_answers_come_in_the_order_of_the_requests_whatever_travels_together():
    with answering(ranked) as (url, _), ServiceClient(url, connections=3) as client:
        batches = [requests("a", "b"), requests("c"), requests("d", "e", "f")]
        assert [reply.request_id for reply in client.rank(batches)] == list("abcdef")


def test_a_connection_that_the_service_has_closed_meanwhile_is_opened_again(monkeypatch):
    monkeypatch.setattr(client_module, "_IDLE_S", 0.05)
    with answering(ranked, idle_s=0.1) as (url, _), ServiceClient(url, connections=1) as client:
        for name in "abc":
            assert client.rank([requests(name)])[0].request_id == name
            time.sleep(0.3)


def test_a_service_that_has_too_much_to_do_is_asked_again(monkeypatch):
    monkeypatch.setattr(client_module, "_PAUSE_S", 0.001)
    answers = iter([(503, b"{}"), (503, b"{}")])
    with (
        answering(lambda *asked: next(answers, None) or ranked(*asked)) as (url, _),
        ServiceClient(url) as client,
    ):
        (reply,) = client.rank([requests("a")])
        assert reply.request_id == "a"
        assert client.num_retried == 2


def test_one_that_always_has_is_given_up(monkeypatch):
    monkeypatch.setattr(client_module, "_PAUSE_S", 0.0)
    with (
        answering(lambda *_: (503, b"{}")) as (url, _),
        ServiceClient(url) as client,
        pytest.raises(ServiceError, match="too much to do; use fewer --connections"),
    ):
        client.rank([requests("a")])


def test_what_a_service_refuses_is_told():
    entry = msgspec.msgpack.encode(BatchReply([BatchEntry(None, "no task is called 'x'")]))
    for reply, reason in (
        ((422, b'{"error": "the body does not fit"}'), r"/v1/rank/batch: answers 422 \(the body does not fit\)"),
        ((500, b"oops"), r"answers 500 \(oops\)"),
        ((200, entry), r"does not answer a request \(no task is called 'x'\)"),
    ):
        with (
            answering(lambda *_, reply=reply: reply) as (url, _),
            ServiceClient(url) as client,
            pytest.raises(ServiceError, match=reason),
        ):
            client.rank([requests("a")])


def test_events_go_with_the_token_and_a_rejected_one_is_told():
    event = EventBody(request_id="r", item_id=1, type="click")

    def take(path, body):
        assert path == "/v1/events"
        return 200, json.dumps({"accepted": len(json.loads(body)), "duplicates": 0, "rejected": []}).encode()

    with answering(take) as (url, headers), ServiceClient(url, token="secret") as client:
        assert client.tell([[event, event], [event]]) == 3
        assert {each["authorization"] for each in headers} == {"Bearer secret"}
    rejected = json.dumps({"accepted": 0, "duplicates": 0, "rejected": [{"index": 0, "reason": "too late"}]}).encode()
    with (
        answering(lambda *_: (200, rejected)) as (url, _),
        ServiceClient(url) as client,
        pytest.raises(ServiceError, match=r"rejects an event \(too late\)"),
    ):
        client.tell([[event]])


def test_nobody_there_is_told():
    with ServiceClient("http://127.0.0.1:9") as client, pytest.raises(ServiceError, match=r"does not answer .*served"):
        client.rank([requests("a")])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://h", "http://", "http://h/x", "redis://h"])
def test_what_is_no_address_of_a_service_is_told(url):
    with pytest.raises(SpecError, match="wanted http://HOST:PORT"):
        ServiceClient(url)
