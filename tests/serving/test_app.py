import base64
import itertools
import json
import re
import time
from contextlib import ExitStack, contextmanager

import jsonschema_rs
import msgspec
import numpy as np
import pytest
import schemathesis
import structlog
from schemathesis.config import SchemathesisConfig

from asgi_client import AsgiClient
from infnet.errors import StoreError
from infnet.serving import system
from infnet.serving.app import create_app
from infnet.serving.encoding import UserState
from infnet.serving.event_log import EventLog
from infnet.serving.feature_store.base import Lookup
from infnet.serving.logs import set_up_logs
from infnet.serving.ranker import Ranker
from infnet.serving.settings import ServeSettings
from service_parts import SECRET, Faulty, count, records, running, wait_until

pytestmark = pytest.mark.usefixtures("without_pauses")

TOKEN = "a-token-that-nobody-knows"
ALLOWED = {"authorization": f"Bearer {TOKEN}"}
MSGPACK = {"content-type": "application/msgpack"}
MAX_BODY = 64 * 1024
ITEMS = [7, 3, 12, 40, 1]
INSIDE = (SECRET, TOKEN, "traceback", "site-packages", "infnet/", "infnet.", ".py", "/tmp", "sqlite")

_numbers = itertools.count()


class Served:
    """An application in a directory of its own, with a store that can be made to fail."""

    def __init__(self, bundle, directory, token=None, **options):
        self.directory = directory
        given = {"deadline_ms": 2000, "max_body_mb": MAX_BODY / 2**20, "fsync": "never", **options}
        settings = ServeSettings(model=bundle.path, state=directory / "state", events=directory / "events", **given)
        opened = system.open_feature_store
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(system, "open_feature_store", lambda *arguments: self._wrapped(opened(*arguments)))
            self.app = create_app(settings, token)
        self.client = AsgiClient(self.app)

    def _wrapped(self, store):
        self.store = Faulty(store)
        return self.store

    def rank(self, *items, **body):
        return self.client.post("/v1/rank", {"user_id": "u1", "item_ids": [*items], **body})

    def records(self, stream):
        return records(self.directory / "events", stream)

    def count(self, name, **labels):
        return count(self.client.get("/metrics").text, name, **labels)


@contextmanager
def serving(bundle, directory, **options):
    """Afterwards, no answer has told anything of the inside."""
    served = Served(bundle, directory, **options)
    with served.client:
        yield served
    check_answers(served)


def check_answers(served):
    for answer in served.client.answers:
        if answer.url.path in ("/docs", "/metrics", "/openapi.json"):
            continue
        told = (answer.text + str(dict(answer.headers))).lower()
        assert not [word for word in (*INSIDE, str(served.directory)) if word.lower() in told], told
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400 and not answer.url.path.endswith("z"):
            assert answer.headers["content-type"] == "application/json"
            assert answer.json().keys() == {"error"}
            assert "\n" not in answer.json()["error"]
            assert len(answer.json()["error"]) < 600


@pytest.fixture(scope="module")
def shared(bundle, tmp_path_factory):
    """One for all tests that leave it as it is."""
    with serving(bundle, tmp_path_factory.mktemp("shared"), token=TOKEN) as served:
        yield served


@pytest.fixture
def client(shared):
    return shared.client


@pytest.fixture
def served(bundle, tmp_path):
    with serving(bundle, tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def ranker(bundle):
    return Ranker(bundle)


def fresh_id():
    return f"r{next(_numbers)}"


def error(answer, status):
    assert answer.status_code == status
    return answer.json()["error"]


def test_scores_are_those_of_the_ranker_on_the_same_state(shared, ranker):
    values = {"bid": [1, 2, None, 4, 5], "rank": [3, None, 1, 1, 2]}
    context, request_id = {"tab": "t2", "temperature": 20.5}, fresh_id()
    answer = shared.rank(*ITEMS, request_id=request_id, context=context, item_features=values)
    reply = answer.json()
    (record,) = [record for record in shared.records("served") if record["request_id"] == request_id]
    wanted = ranker.score("u1", ITEMS, context=context, candidate_values=values, time_ms=record["time_ms"])
    assert reply["request_id"] == request_id
    assert reply["degraded"] == []
    assert [item["item_id"] for item in reply["items"]] == [str(ITEMS[i]) for i in np.argsort(-wanted[:, 0])]
    for item in reply["items"]:
        found = [item["tasks"][task] for task in ranker.tasks]
        assert found == pytest.approx(wanted[ITEMS.index(int(item["item_id"]))].tolist(), rel=1e-5)
        assert item["score"] == item["tasks"]["click"]


def test_however_candidates_are_spelt_the_order_is_the_same(client):
    keys = np.array(ITEMS, "<i8").tobytes()
    spellings = [
        {"item_ids": ITEMS},
        {"item_ids": [str(item) for item in ITEMS]},
        {"candidates": [{"item_id": item} for item in ITEMS]},
        {"item_ids": [*ITEMS, *ITEMS[::-1]]},
        {"packed_item_ids": base64.b64encode(keys).decode()},
    ]
    answers = [client.post("/v1/rank", {"user_id": "u1", **given}).json() for given in spellings]
    body = msgspec.msgpack.encode({"user_id": "u1", "packed_item_ids": keys})
    answers.append(msgspec.msgpack.decode(client.post("/v1/rank", body, headers=MSGPACK).content))
    orders = [[item["item_id"] for item in answer["items"]] for answer in answers]
    assert orders == [orders[0]] * len(orders)
    assert sorted(map(int, orders[0])) == sorted(ITEMS)


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/msgpack"])
@pytest.mark.parametrize("form", ["application/json", "application/msgpack", "application/x-msgpack", None])
def test_an_answer_comes_in_the_form_that_is_asked_for_or_that_of_the_request(client, form, accept):
    packs = "msgpack" in (form or "")
    body = {"user_id": "u1", "item_ids": ITEMS}
    raw = msgspec.msgpack.encode(body) if packs else json.dumps(body).encode()
    headers = {"accept": accept} | ({} if form is None else {"content-type": form})
    answer = client.post("/v1/rank", raw, headers={name: value for name, value in headers.items() if value})
    assert answer.status_code == 200
    packed = "msgpack" in accept if accept in ("application/json", "application/msgpack") else packs
    assert answer.headers["content-type"] == ("application/msgpack" if packed else "application/json")
    reply = (msgspec.msgpack if packed else msgspec.json).decode(answer.content)
    assert len(reply["items"]) == len(ITEMS)


def test_limit_by_and_timings_are_as_asked_for(client):
    body = {"user_id": "u1", "item_ids": ITEMS, "limit": 2, "by": "watch", "timings": True}
    reply = client.post("/v1/rank", body).json()
    assert len(reply["items"]) == 2
    assert all(item["score"] == item["tasks"]["watch"] for item in reply["items"])
    assert reply["timings_ms"]["model"] > 0
    assert "timings_ms" not in client.post("/v1/rank", {"user_id": "u1", "item_ids": ITEMS}).json()


def test_nobody_and_nothing_known_and_no_candidates_get_an_answer_all_the_same(client):
    reply = client.post("/v1/rank", {"user_id": "nobody 日本", "item_ids": ["é", 10**18, "\x00"]}).json()
    assert {item["item_id"] for item in reply["items"]} == {"é", str(10**18), "\x00"}
    reply = client.post("/v1/rank", {"user_id": "u1"}).json()
    assert (reply["items"], reply["degraded"]) == ([], [])


def test_a_batch_is_answered_one_by_one_in_its_order(client):
    requests = [
        {"user_id": "u1", "item_ids": ITEMS, "request_id": "one"},
        {"user_id": "u1", "item_ids": [1], "context": {"tabb": 1}},
        {"user_id": "u2", "item_ids": ITEMS, "request_id": "three", "limit": 1},
        {"user_id": "u2", "item_ids": [1], "by": "clik"},
        {"user_id": "u2", "item_ids": [1], "packed_item_ids": "AAAA"},
    ]
    for answer in (
        client.post("/v1/rank/batch", {"requests": requests}).json(),
        msgspec.msgpack.decode(
            client.post("/v1/rank/batch", msgspec.msgpack.encode({"requests": requests[:4]}), headers=MSGPACK).content
        ),
    ):
        first, second, third, fourth = answer["replies"][:4]
        assert (first["reply"]["request_id"], first["error"]) == ("one", None)
        assert len(third["reply"]["items"]) == 1
        assert second["reply"] is None
        assert "did you mean 'tab'" in second["error"]
        assert "did you mean 'click'" in fourth["error"]
    alone = client.post("/v1/rank", requests[0]).json()
    assert [item["item_id"] for item in first["reply"]["items"]] == [item["item_id"] for item in alone["items"]]


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "no user": b"{}",
    "an unknown field": b'{"user_id": 1, "users": 2}',
    "deep JSON": b'{"user_id": ' + b"[" * 60_000,
    "deep lists in a value": b'{"user_id": 1, "context": {"tab": ' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
    "half a surrogate pair": b'{"user_id": "\\ud800", "item_ids": [1]}',
    "no UTF-8": b'{"user_id": "\xff", "item_ids": [1]}',
    "a number beyond all": b'{"user_id": 1, "context": {"temperature": 1e999}, "item_ids": [1]}',
    "NaN": b'{"user_id": NaN}',
    "a key beyond 64 bits": b'{"user_id": 99999999999999999999}',
    "thousands of digits": b'{"user_id": ' + b"9" * 5000 + b"}",
    "an unknown feature": b'{"user_id": 1, "context": {"tabb": 1}, "item_ids": [1]}',
    "a value of another kind": b'{"user_id": 1, "context": {"temperature": "warm"}, "item_ids": [1]}',
    "an unknown task": b'{"user_id": 1, "item_ids": [1], "by": "clik"}',
    "two ways": b'{"user_id": 1, "item_ids": [1], "packed_item_ids": ""}',
    "columns that differ": b'{"user_id": 1, "item_ids": [1], "item_features": {"bid": []}}',
    "no multiple of 8 bytes": b'{"user_id": 1, "packed_item_ids": "AAAA"}',
    "a feature of the item": b'{"user_id": 1, "item_ids": [1], "item_features": {"author": ["a"]}}',
    "a very long value": b'{"user_id": 1, "item_ids": [1], "by": "' + b"x" * 30_000 + b'"}',
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_with_one_line(client, name):
    assert error(client.post("/v1/rank", BAD[name]), 422)


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x81\xa7user_id", b"\x91" * 50_000, b"\xff" * 9])
def test_what_is_no_messagepack_is_refused_with_one_line(client, raw):
    assert error(client.post("/v1/rank", raw, headers=MSGPACK), 422)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 2**63 - 1])
def test_numbers_that_are_none_or_huge_never_become_scores(client, value):
    body = {
        "user_id": "u1",
        "item_ids": [1, 2],
        "context": {"tab": value, "temperature": value},
        "item_features": {"bid": [value, None], "rank": [None, value]},
    }
    answer = client.post("/v1/rank", msgspec.msgpack.encode(body), headers=MSGPACK)
    if answer.status_code != 422:
        items = msgspec.msgpack.decode(answer.content)["items"]
        assert len(items) == 2
        assert all(np.isfinite([item["score"], *item["tasks"].values()]).all() for item in items)


def test_too_many_candidates_are_refused(bundle, tmp_path):
    with serving(bundle, tmp_path, max_candidates=10) as served:
        assert "11 candidates, wanted at most 10" in error(served.rank(*range(11)), 422)
        assert served.rank(*range(10)).status_code == 200


def test_a_body_beyond_the_limit_is_refused_and_one_within_it_is_not(client):
    fitting = json.dumps({"user_id": "u1", "item_ids": ITEMS}).encode()
    assert client.post("/v1/rank", fitting.ljust(MAX_BODY)).status_code == 200

    async def in_parts(size):
        for _ in range(size // 1024):
            yield b" " * 1024

    for path, headers in (("/v1/rank", {}), ("/v1/rank/batch", {}), ("/v1/events", ALLOWED)):
        assert f"more than {MAX_BODY} bytes" in error(client.post(path, b" " * (MAX_BODY + 1), headers=headers), 413)
        answer = client.request("POST", path, content=in_parts(2 * MAX_BODY), headers=headers)
        assert "more than" in error(answer, 413)
        assert answer.headers["connection"] == "close"


def test_other_paths_and_methods_are_none(client):
    for path in ("/", "/v1", "/v1/rank/", "/v1/rank/x", "/v1/users", "/v1/events/", "/v2/rank", "/../etc/passwd"):
        error(client.post(path, {}), 404)
    for method, path, allowed in (
        ("GET", "/v1/rank", "POST"),
        ("PUT", "/v1/events", "POST"),
        ("DELETE", "/v1/users/u1", "PUT"),
        ("POST", "/v1/model", "GET"),
        ("POST", "/metrics", "GET"),
    ):
        answer = client.request(method, path)
        error(answer, 405)
        assert answer.headers["allow"] == allowed


def test_what_changes_anything_wants_the_token_and_nothing_else_does(shared):
    client, event = shared.client, {"request_id": fresh_id(), "item_id": 1, "type": "impression"}
    before = len(shared.records("events")), len(shared.records("rejected"))
    wrong = ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, f"Basic {TOKEN}", "Bearer \xff"]
    for given in [None, *wrong]:
        headers = {} if given is None else {"authorization": given.encode("latin-1")}
        for method, path, body in (
            ("POST", "/v1/events", [event]),
            ("POST", "/v1/events", "no event"),
            ("PUT", "/v1/users/u9", {"features": {"years": 1}}),
            ("PUT", "/v1/items/9", {"features": {"bid": 1}}),
        ):
            assert "Authorization" in error(client.request(method, path, json=body, headers=headers), 401)
    assert (len(shared.records("events")), len(shared.records("rejected"))) == before
    (kept,) = shared.store.behind.fetch([Lookup("u9", ["9"])])
    assert (kept.user.values, kept.items) == (None, [None])
    assert client.post("/v1/events", [event], headers=ALLOWED).json()["accepted"] == 1
    assert shared.rank(1).status_code == 200
    for path in ("/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_without_a_token_everybody_may_come(served):
    assert served.client.put("/v1/users/u9", {"features": {"years": 30}}).json() == {"features": 1}
    assert served.client.post("/v1/events", []).json() == {"accepted": 0, "duplicates": 0, "rejected": []}


def test_a_click_is_in_the_history_of_the_very_next_request(served):
    """Also when the service has only just started."""
    clicked = []
    for item in (31, 5, 17):
        reply = served.rank(*ITEMS, user_id="new").json()
        event = {"request_id": reply["request_id"], "item_id": item, "type": "click"}
        assert served.client.post("/v1/events", [event]).json()["accepted"] == 1
        clicked.insert(0, str(item))
        time.sleep(0.002)  # a history is what was strictly before
        served.rank(*ITEMS, user_id="new")
        assert served.records("served")[-1]["histories"]["click"]["items"] == clicked


def test_the_first_request_after_the_start_knows_the_bundles_histories(served, ranker):
    assert served.rank(*ITEMS, user_id="u1").json()["degraded"] == []
    (record,) = served.records("served")
    state = ranker.encoder.snapshot("u1")
    assert record["histories"]["click"]["items"] == ranker.bundle.items.keys(state.histories[0])
    assert len(record["histories"]["click"]["items"]) > 1


def test_events_are_counted_by_what_became_of_them(shared):
    request_id = fresh_id()
    events = [
        {"request_id": request_id, "item_id": 1, "type": "impression"},
        {"request_id": request_id, "item_id": 1, "type": "impression"},
        {"request_id": request_id, "item_id": 1, "type": "clik"},
        {"request_id": request_id},
        7,
    ]
    reply = shared.client.post("/v1/events", events, headers=ALLOWED).json()
    assert (reply["accepted"], reply["duplicates"]) == (1, 1)
    assert [rejection["index"] for rejection in reply["rejected"]] == [2, 3, 4]
    assert "did you mean 'click'" in reply["rejected"][0]["reason"]
    assert [record["raw"] for record in shared.records("rejected")[-3:]] == [
        json.dumps(event, separators=(",", ":")) for event in events[2:]
    ]


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff", b"[" * 60_000, b'[{"item_id": "\\ud800"}]'])
def test_what_is_no_json_is_set_aside_and_refused(shared, raw):
    before = len(shared.records("rejected"))
    assert "no JSON" in error(shared.client.post("/v1/events", raw, headers=ALLOWED), 422)
    (record,) = shared.records("rejected")[before:]
    assert record["num_bytes"] == len(raw)


@pytest.mark.parametrize("raw", [b'{"request_id": "r", "item_id": 1, "type": "impression"}', b"7"])
def test_json_that_is_no_list_is_not_called_no_json(shared, raw):
    answer = shared.client.post("/v1/events", raw, headers=ALLOWED)
    assert answer.status_code == 200 or "no JSON" not in answer.json()["error"]


def test_an_event_may_come_without_a_list(shared):
    event = {"request_id": fresh_id(), "item_id": 1, "type": "impression"}
    assert shared.client.post("/v1/events", event, headers=ALLOWED).json()["accepted"] == 1


def test_features_that_are_put_count_from_the_next_request_on(served, ranker):
    client, before = served.client, served.rank(*ITEMS).json()
    assert client.put("/v1/users/u1", {"features": {"years": 20, "karma": 9.5}}).json() == {"features": 2}
    assert client.put("/v1/items/7", {"features": {"bid": 8, "reasons": ["hot", "new"]}}).json() == {"features": 2}
    after = served.rank(*ITEMS).json()
    record = served.records("served")[-1]
    assert record["user"] == {"years": 20, "karma": 9.5}
    snapshot = ranker.encoder.snapshot("u1")
    state = UserState(
        ranker.encoder.describe("u1", {"years": 20, "karma": 9.5}, {}).values, snapshot.histories, snapshot.times
    )
    values = {"bid": [8, *[None] * 4], "reasons": [["hot", "new"], *[None] * 4]}
    wanted = ranker.score(state, ITEMS, candidate_values=values, time_ms=record["time_ms"])
    for item in after["items"]:
        place = ITEMS.index(int(item["item_id"]))
        assert [*item["tasks"].values()] == pytest.approx(wanted[place].tolist(), rel=1e-5)
    assert after["items"] != before["items"]


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        ("/v1/users/u1", {"features": {"yeras": 1}}, "did you mean 'years'"),
        ("/v1/users/u1", {"features": {"years": "old"}}, "years"),
        ("/v1/users/u1", {"years": 1}, "years"),
        ("/v1/users/u1", {}, "features"),
        ("/v1/items/1", {"features": {"price": 1}}, "'price' is no feature that is set per item while serving"),
        ("/v1/items/1", {"features": {"bid": "much"}}, "bid"),
        ("/v1/items/1", {"features": {"bid": {"a": 1}}}, "bid|features"),
    ],
)
def test_features_that_the_model_cannot_read_are_not_put(shared, path, body, wanted):
    said = error(shared.client.put(path, body, headers=ALLOWED), 422)
    assert any(word in said for word in wanted.split("|"))
    (kept,) = shared.store.behind.fetch([Lookup("u1", ["1"])])
    assert (kept.user.values, kept.items) == (None, [None])


def test_a_key_in_a_path_may_be_any_text(served):
    assert served.client.put("/v1/users/na%C3%AFve%20%E6%97%A5", {"features": {"years": 30}}).status_code == 200
    (kept,) = served.store.behind.fetch([Lookup("naïve 日")])
    assert kept.user.values == {"years": 30}


def test_a_key_in_a_path_may_have_slashes_and_line_ends(served):
    for spelt, key in (("a%2Fb", "a/b"), ("a/b/", "a/b/"), ("/", "/"), ("a%0Ab", "a\nb"), ("%2e%2e%2fx", "../x")):
        assert served.client.put(f"/v1/items/{spelt}", {"features": {"bid": 30}}).status_code == 200
        (kept,) = served.store.behind.fetch([Lookup("u", [key])])
        assert kept.items == [{"bid": 30}], key


def test_a_key_in_a_path_may_not_be_empty(served):
    assert "empty" in error(served.client.put("/v1/users/", {"features": {}}), 422)


def test_while_the_store_fails_ranking_and_events_go_on_and_putting_is_told_to_come_back(served):
    served.rank(*ITEMS)
    served.store.is_down = True
    assert served.rank(*ITEMS).json()["degraded"] == ["last_known_features"]
    reply = served.rank(*ITEMS, user_id="new").json()
    event = {"request_id": reply["request_id"], "item_id": 5, "type": "click"}
    assert served.client.post("/v1/events", [event]).json()["accepted"] == 1
    for path in ("/v1/users/u1", "/v1/items/1"):
        answer = served.client.put(path, {"features": {}})
        error(answer, 503)
        assert answer.headers["retry-after"] == "1"
    assert served.client.get("/healthz").json() == {
        "status": "degraded",
        "feature_store": "failing",
        "event_log": "ok",
    }
    assert served.client.get("/readyz").status_code == 200
    assert served.count("infnet_degraded_total", step="last_known_features") == 2
    served.store.is_down = False
    wait_until(lambda: served.rank(*ITEMS, user_id="new").json()["degraded"] == [])
    wait_until(lambda: served.client.get("/healthz").json()["status"] == "ok")
    served.rank(*ITEMS, user_id="new")
    assert served.records("served")[-1]["histories"]["click"]["items"] == ["5"]


def test_while_the_log_fails_events_are_told_to_come_back_and_ranking_goes_on(served, monkeypatch):
    def fails(*_):
        raise StoreError(f"{SECRET}: no space left")

    event = {"request_id": fresh_id(), "item_id": 5, "type": "click", "user_id": "new"}
    with monkeypatch.context() as patch:
        for name in ("append_events", "append_served", "reject"):
            patch.setattr(EventLog, name, fails)
        for body in ([event], ["no event"]):
            answer = served.client.post("/v1/events", body)
            error(answer, 503)
            assert answer.headers["retry-after"] == "1"
        assert served.rank(*ITEMS).json()["degraded"] == []
    assert served.records("events") == []
    assert served.client.post("/v1/events", [event]).json() == {"accepted": 1, "duplicates": 0, "rejected": []}


@pytest.fixture
def logs_as_served():
    """Other ones draw tracebacks with colours and variables, which takes seconds."""
    set_up_logs("info")
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("logs_as_served")
def test_a_failure_nobody_foresaw_tells_nothing_but_where_to_look(bundle, tmp_path):
    def fails(name, *_):
        if name in ("put_users", "fetch"):
            raise ValueError(SECRET)

    with serving(bundle, tmp_path, deadline_ms=10_000) as served:
        served.store.before = fails
        answer = served.client.put("/v1/users/u1", {"features": {}}, headers={"x-request-id": "find-me"})
        assert "x-request-id" in error(answer, 500)
        assert answer.headers["x-request-id"] == "find-me"
        error(served.rank(*ITEMS), 503)
        served.store.before = lambda *_: None
        assert served.rank(*ITEMS).status_code == 200


def test_when_too_many_wait_the_rest_is_told_to_come_back_at_once(bundle, tmp_path):
    with serving(bundle, tmp_path, queue=2, threads=1) as served:
        served.store.delay_s = 0.3
        body = {"user_id": "u1", "item_ids": list(range(65))}
        answers = served.client.all([("POST", "/v1/rank", {"json": body})] * 12)
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert 2 <= statuses.count(200) <= 3
        for answer in answers:
            if answer.status_code == 503:
                assert "too many requests" in answer.json()["error"]
                assert answer.headers["retry-after"] == "1"
        answer = served.client.post("/v1/rank/batch", {"requests": [body] * 4})
        assert "too many requests" in error(answer, 503)
        assert answer.headers["retry-after"] == "1"
        served.store.delay_s = 0.0
        assert served.rank(*ITEMS).status_code == 200


def test_only_ranking_is_shed(bundle, tmp_path):
    others = [
        ("POST", "/v1/events", {"json": []}),
        ("PUT", "/v1/users/u1", {"json": {"features": {}}}),
        *(("GET", path, {}) for path in ("/v1/model", "/healthz", "/metrics")),
    ]
    ranking = ("POST", "/v1/rank", {"json": {"user_id": "u1", "item_ids": list(range(65))}})
    with serving(bundle, tmp_path, queue=1, threads=1) as served:
        served.store.before = lambda name, *_: time.sleep(0.2) if name == "fetch" else None
        answers = served.client.all([*[ranking] * 6, *others])
        assert 503 in [answer.status_code for answer in answers[:6]]
        assert {answer.status_code for answer in answers[6:]} == {200}


def test_the_deadline_is_kept_when_the_store_is_slow(bundle, tmp_path):
    with serving(bundle, tmp_path, deadline_ms=100) as served:
        served.store.delay_s = 0.6
        began = time.perf_counter()
        reply = served.rank(*ITEMS).json()
        assert time.perf_counter() - began < 0.4
        assert reply["degraded"] == ["popularity_order"]
        assert served.count("infnet_degraded_total", step="popularity_order") == 1


def test_the_model_is_described(client, bundle):
    assert (
        client.get("/v1/model").json().items()
        >= {
            "version": bundle.manifest.version,
            "model": "infnet",
            "tasks": ["click", "like", "watch"],
            "event_types": ["click", "impression", "like", "watch"],
            "refused": None,
        }.items()
    )


def test_before_the_start_and_after_the_end_nobody_is_welcome(bundle, tmp_path):
    served = Served(bundle, tmp_path)
    answer = served.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "down")
    served.client.start()
    assert served.client.get("/readyz").status_code == 200
    assert served.client.get("/healthz").json() == {"status": "ok", "feature_store": "ok", "event_log": "ok"}
    served.client.end()
    for path in ("/readyz", "/healthz"):
        answer = served.client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (503, "down")
    error(served.rank(*ITEMS), 503)
    served.client.close()
    check_answers(served)


def test_what_waits_when_the_end_comes_is_answered_and_logged(bundle, tmp_path):
    served, answers = Served(bundle, tmp_path, threads=1), []
    served.client.start()
    served.store.delay_s = 0.05
    body = {"user_id": "u1", "item_ids": list(range(65))}

    def ask():
        answers.extend(served.client.all([("POST", "/v1/rank", {"json": body})] * 5))

    with running(ask):
        wait_until(lambda: served.store.calls["fetch"] >= 1)
        served.client.end()
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [answer.json()["degraded"] for answer in answers] == [[]] * 5
    assert len(served.records("served")) == 5
    served.client.close()
    check_answers(served)


def test_what_was_taken_is_there_after_a_restart(bundle, tmp_path):
    event = {"request_id": "r", "item_id": 5, "type": "click", "user_id": "new", "event_id": "e1"}
    with serving(bundle, tmp_path) as served:
        assert served.client.post("/v1/events", [event]).json()["accepted"] == 1
        served.client.put("/v1/users/new", {"features": {"years": 33}})
    with serving(bundle, tmp_path) as served:
        assert served.client.post("/v1/events", [event]).json()["duplicates"] == 1
        served.rank(*ITEMS, user_id="new")
        record = served.records("served")[-1]
        assert record["histories"]["click"]["items"] == ["5"]
        assert record["user"] == {"years": 33}


def test_metrics_count_what_was_asked(served):
    served.rank(*ITEMS)
    served.rank(*ITEMS, by="clik")
    served.client.get("/nothing/here")
    served.client.post("/v1/events", [{"request_id": "r", "item_id": 5, "type": "click"}])
    assert served.count("infnet_requests_total", endpoint="/v1/rank", code="200") == 1
    assert served.count("infnet_requests_total", endpoint="/v1/rank", code="422") == 1
    assert served.count("infnet_requests_total", endpoint="other", code="404") == 1
    assert served.count("infnet_events_total", type="click", fate="accepted") == 1
    assert served.count("infnet_stage_seconds_count", stage="model") == 1
    assert served.count("infnet_queued_requests") == 0
    assert served.client.get("/metrics").headers["content-type"].startswith("text/plain")


@pytest.fixture(scope="module")
def described(shared):
    return shared.client.get("/openapi.json").json()


def test_the_description_is_valid_and_leads_everywhere(described):
    schemathesis.openapi.from_dict(described, config=SchemathesisConfig()).validate()
    components = described["components"]
    named = {part.split('"')[0] for part in json.dumps(described).split("#/components/schemas/")[1:]}
    assert named <= components["schemas"].keys()
    for schema in components["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    assert described["paths"].keys() == {
        *("/v1/rank", "/v1/rank/batch", "/v1/events", "/v1/users/{user_id}", "/v1/items/{item_id}"),
        *("/v1/model", "/healthz", "/readyz"),
    }


def operations(described):
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield path.format(user_id="u8", item_id="8"), method.upper(), operation


def fitting(described, operation, status, form="application/json"):
    """What checks a reply."""
    schema = operation["responses"][str(status)]["content"][form]["schema"]
    return jsonschema_rs.validator_for({**schema, "components": described["components"]})


def test_the_examples_work_as_they_stand_and_replies_are_as_described(served, described):
    tried = 0
    for path, method, operation in operations(described):
        body = operation.get("requestBody")
        examples = [None] if body is None else body["content"]["application/json"]["examples"].values()
        for example in examples:
            given = {} if example is None else {"json": example["value"]}
            answer = served.client.request(method, path, **given)
            assert answer.status_code == 200, path
            fitting(described, operation, 200).validate(answer.json())
            tried += 1
            if path == "/v1/events":
                assert (answer.json()["accepted"], answer.json()["rejected"]) == (len(example["value"]), [])
    assert tried == 8
    assert [record["type"] for record in served.records("events")] == ["impression", "click"]


def test_every_refusal_is_one_that_is_described(shared, described):
    seen = set()
    for path, method, operation in operations(described):
        wanted = {int(code) for code in operation["responses"]}
        answers = [shared.client.request(method, path, content=b"{", headers=ALLOWED)]
        if "requestBody" in operation:
            answers.append(shared.client.request(method, path, content=b" " * (MAX_BODY + 1), headers=ALLOWED))
            answers.append(shared.client.request(method, path, content=b"{"))
        for answer in answers:
            assert answer.status_code in wanted, (path, answer.status_code)
            if answer.status_code >= 400:
                fitting(described, operation, answer.status_code).validate(answer.json())
                seen.add(answer.status_code)
        assert ("security" in operation) == (401 in wanted)
    assert seen == {401, 413, 422}


def test_a_service_without_a_token_describes_none(served):
    for _, _, operation in operations(served.client.get("/openapi.json").json()):
        assert "401" not in operation["responses"]
        assert "security" not in operation


def test_the_pages_to_read_need_no_other_server(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    needed = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert needed
    assert all(client.get(path).status_code == 200 for path in needed if path.startswith("/"))
    assert all(path.startswith("/") for path in needed)


def test_services_side_by_side_do_not_share_anything(bundle, tmp_path):
    with ExitStack() as stack:
        one, other = (stack.enter_context(serving(bundle, tmp_path / name)) for name in ("one", "other"))
        event = {"request_id": "r", "item_id": 5, "type": "click", "event_id": "e1"}
        assert [each.client.post("/v1/events", [event]).json()["accepted"] for each in (one, other)] == [1, 1]
        one.rank(*ITEMS)
        assert one.count("infnet_requests_total", endpoint="/v1/rank") == 1
        assert other.count("infnet_requests_total", endpoint="/v1/rank") == 0
