"""Whatever a client sends, the service answers: soon, with no 5xx, and with nothing of its inside."""

import contextlib
import json
import os
import time

import httpx
import msgspec
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.config import SchemathesisConfig

from served import served

TIMES = int(os.environ.get("INFNET_FUZZ", "1"))
EXAMPLES = {
    ("POST", "/v1/rank"): 400 * TIMES,
    ("POST", "/v1/rank/batch"): 100 * TIMES,
    ("POST", "/v1/events"): 300 * TIMES,
    ("PUT", "/v1/users/{user_id}"): 100 * TIMES,
    ("PUT", "/v1/items/{item_id}"): 100 * TIMES,
}
"""As many of valid documents, and as many of invalid ones: 2,000 in all, and 10,000 with INFNET_FUZZ=5."""
HANGS_S = 5.0

checks.load_all_checks()
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
INSIDE = ("traceback", "infnet/", "site-packages", "/tmp", ".py")


@pytest.fixture(scope="module")
def service(bundle, tmp_path_factory):
    with served(bundle.path, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_url(f"{service.client.base_url}/openapi.json", config=SchemathesisConfig())


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("route", EXAMPLES, ids=" ".join)
def test_generated_requests_get_the_answers_that_are_documented(route, mode, schema, service):
    method, path = route
    rejects = mode is GenerationMode.NEGATIVE and path != "/v1/events"  # events are rejected one by one
    wanted = [*CHECKS, *([checks.negative_data_rejection] if rejects else [])]
    longest = 0.0

    @settings(
        max_examples=EXAMPLES[route],
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
        database=None,
        derandomize=True,
        deadline=None,
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def answered(case):
        nonlocal longest
        began = time.monotonic()
        response = case.call(timeout=HANGS_S)
        longest = max(longest, time.monotonic() - began)
        case.validate_response(response, checks=wanted)
        assert response.status_code != 503

    answered()
    assert longest < HANGS_S
    assert service.process.poll() is None
    assert '"level": "error"' not in service.log


def post(service, path, content, kind="application/json"):
    return service.client.post(path, content=content, headers={"content-type": kind})


BODIES = {
    "no JSON": b"{",
    "empty": b"",
    "null": b"null",
    "another type": b"[1, 2]",
    "NaN": b'{"user_id": "u1", "context": {"temperature": NaN}, "item_ids": ["1"]}',
    "a number beyond all": b'{"user_id": "u1", "context": {"temperature": 1e999}, "item_ids": ["1"]}',
    "a key beyond 64 bits": b'{"user_id": 99999999999999999999999999, "item_ids": ["1"]}',
    "thousands of digits": b'{"user_id": ' + b"9" * 100_000 + b', "item_ids": ["1"]}',
    "UTF-16": '{"user_id": "u1", "item_ids": ["1"]}'.encode("utf-16"),
    "Latin-1": '{"user_id": "ü", "item_ids": ["1"]}'.encode("latin-1"),
    "bytes": bytes(range(256)),
    "deep lists": b'{"user_id": "u1", "context": {"tab": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "an unknown field": b'{"user_id": "u1", "itemids": ["1"]}',
    "an unknown feature": b'{"user_id": "u1", "context": {"tabb": 1}, "item_ids": ["1"]}',
    "a feature of another kind": b'{"user_id": "u1", "context": {"temperature": "warm"}, "item_ids": ["1"]}',
    "an empty key": b'{"user_id": "", "item_ids": ["1"]}',
    "a limit of none": b'{"user_id": "u1", "item_ids": ["1"], "limit": 0}',
    "an unknown task": b'{"user_id": "u1", "item_ids": ["1"], "by": "clik"}',
    "candidates twice": b'{"user_id": "u1", "item_ids": ["1"], "candidates": [{"item_id": "2"}]}',
    "columns that do not fit": b'{"user_id": "u1", "item_ids": ["1"], "item_features": {"bid": [1, 2]}}',
    "bytes that do not fit": b'{"user_id": "u1", "packed_item_ids": "AAA="}',
}


@pytest.mark.parametrize("name", BODIES)
def test_what_is_no_request_is_refused_in_one_line(name, service):
    answer = post(service, "/v1/rank", BODIES[name])
    assert answer.status_code == 422
    said = answer.json()["error"]
    assert said
    assert "\n" not in said
    assert len(said) < 600
    assert not any(word in said.lower() for word in INSIDE)


def test_what_is_no_event_is_set_aside_with_the_reason(service):
    before = len(service.records("rejected"))
    for name in ("no JSON", "UTF-16", "Latin-1", "bytes", "deep lists", "deep objects", "empty"):
        assert post(service, "/v1/events", BODIES[name]).status_code in (200, 422)
    rejected = service.records("rejected")[before:]
    assert len(rejected) == 7
    assert all(record["reason"] for record in rejected)
    events = [
        {"request_id": "r", "item_id": "1", "type": "clik"},
        {"request_id": "r", "item_id": "1", "type": "click", "time_ms": 9_999_999_999_999},
        {"request_id": "r", "item_id": "1", "type": "watch", "value": 1e308},
        {"request_id": "r", "item_id": "never seen", "type": "impression"},
    ]
    answer = service.tell(*events).json()
    assert answer["accepted"] == 2
    assert [each["index"] for each in answer["rejected"]] == [0, 1]
    assert "did you mean 'click'" in answer["rejected"][0]["reason"]


def test_a_million_candidates_are_too_many_and_soon_refused(service):
    packed = np.arange(1_000_000, dtype="<i8").tobytes()
    body = msgspec.msgpack.encode({"user_id": "u1", "packed_item_ids": packed})
    listed = json.dumps({"user_id": "u1", "item_ids": [str(i) for i in range(1_000_000)]}).encode()
    began = time.monotonic()
    answer = post(service, "/v1/rank", body, "application/msgpack")
    assert answer.status_code == 422
    assert "1000000 candidates, wanted at most 10000" in str(answer.content)
    assert post(service, "/v1/rank", listed).status_code == 413
    assert time.monotonic() - began < 5
    assert service.rank(user_id="u1", item_ids=["1"]).status_code == 200


def test_a_body_without_an_end_is_cut_off(service):
    def endless():
        while True:
            yield b"[" * 65_536

    with contextlib.suppress(httpx.TransportError):  # who still sends may not see the answer
        assert service.client.post("/v1/rank", content=endless()).status_code == 413
    assert service.rank(user_id="u1", item_ids=["1"]).status_code == 200


def test_unknown_users_and_items_get_an_order_all_the_same(service):
    answer = service.rank(
        user_id="nobody \ud800".encode("utf-8", "replace").decode(), item_ids=["1", "no such item", 10**18]
    )
    assert answer.status_code == 200
    assert {item["item_id"] for item in answer.json()["items"]} == {"1", "no such item", str(10**18)}


@given(
    tab=st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans()), bid=st.floats()
)
@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
def test_scores_are_numbers_whatever_features_are(tab, bid, service):
    body = {"user_id": "u1", "context": {"tab": tab}, "item_ids": ["1", "2"], "item_features": {"bid": [bid, None]}}
    answer = post(service, "/v1/rank", msgspec.msgpack.encode(body), "application/msgpack")
    if answer.status_code == 422:
        return
    assert answer.status_code == 200
    for item in msgspec.msgpack.decode(answer.content)["items"]:
        assert np.isfinite([item["score"], *item["tasks"].values()]).all()
