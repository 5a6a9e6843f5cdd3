import base64
import json

import msgspec
import numpy as np
import pytest

from infnet.errors import DataError
from infnet.serving.wire import JSON, MSGPACK, BatchBody, EventBody, RankBody, decode, encode, schemas

KEYS = [5, 2**40, -3]


def columns(**fields):
    return decode(json.dumps({"user_id": "u", **fields}).encode(), RankBody, JSON).columns()


def test_every_way_to_give_candidates_gives_the_same():
    packed = np.array(KEYS, "<i8").tobytes()
    one_by_one = columns(candidates=[{"item_id": key, "features": {"bid": key / 2}} for key in KEYS])
    column_wise = columns(item_ids=KEYS, item_features={"bid": [key / 2 for key in KEYS]})
    assert one_by_one == column_wise == ([str(key) for key in KEYS], {"bid": [key / 2 for key in KEYS]})
    assert columns(packed_item_ids=base64.b64encode(packed).decode())[0] == one_by_one[0]
    binary = msgspec.msgpack.encode({"user_id": "u", "packed_item_ids": packed})
    assert decode(binary, RankBody, MSGPACK).columns()[0] == one_by_one[0]


def test_of_an_item_given_twice_the_first_counts():
    keys, values = columns(candidates=[{"item_id": i, "features": {"bid": n}} for n, i in enumerate("abacb")])
    assert keys == ["a", "b", "c"]
    assert values == {"bid": [0, 1, 3]}


def test_a_candidate_without_a_feature_that_others_have_is_missing_it():
    assert columns(candidates=[{"item_id": 1}, {"item_id": 2, "features": {"bid": 3}}])[1] == {"bid": [None, 3]}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"item_ids": [1], "candidates": [{"item_id": 1}]}, "give one of"),
        ({"item_ids": [1, 2], "item_features": {"bid": [1]}}, "item_features.bid has 1 values, wanted 2"),
        ({"candidates": [{"item_id": 1}], "item_features": {"bid": [1]}}, "goes with item_ids"),
        ({"packed_item_ids": "AAAA"}, "multiple of 8"),
    ],
)
def test_columns_that_do_not_fit_are_told(fields, wanted):
    with pytest.raises(DataError, match=wanted):
        columns(**fields)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"", "no json"),
        (b"{", "no json"),
        (b'{"user_id": "\xff"}', "no UTF-8"),
        (b"{}", "user_id"),
        (b'{"user_id": null}', "user_id"),
        (b'{"user_id": 1, "users": 2}', "users"),
        (b'{"user_id": 1e999}', "out of range"),
        (b'{"user_id": NaN}', "no json"),
        (b'{"user_id": 123456789012345678901234567890}', "9223372036854775807"),
        (b'{"user_id": 1, "context": {"tab": {"a": 1}}}', "context"),
        (b'{"user_id": 1, "context": {"tab": ' + b"[" * 100_000, "context"),
        (b'{"user_id": 1, "candidates": [{"item_id": 1}, {"item_id": true}]}', r"candidates\[1\].item_id"),
        (b'{"user_id": 1, "limit": 0}', "limit"),
        (b'{"user_id": "' + b"x" * 513 + b'"}', "512"),
    ],
)
def test_what_is_no_request_is_told_in_one_line(raw, wanted):
    with pytest.raises(DataError, match=wanted) as caught:
        decode(raw, RankBody, JSON)
    assert "\n" not in str(caught.value)


def test_both_forms_say_the_same():
    body = {"requests": [{"user_id": "u", "candidates": [{"item_id": "é"}], "context": {"tab": [1, "b", None]}}]}
    assert decode(json.dumps(body).encode(), BatchBody, JSON) == decode(
        msgspec.msgpack.encode(body), BatchBody, MSGPACK
    )


def test_a_number_that_is_none_is_sent_as_null():
    assert encode({"score": float("nan")}, JSON) == b'{"score":null}'


def test_an_event_is_true_or_a_number():
    event = {"request_id": "r", "item_id": 7, "type": "click"}
    assert decode(json.dumps(event).encode(), EventBody, JSON).value == 1.0
    assert decode(json.dumps(event | {"value": False}).encode(), EventBody, JSON).value is False
    with pytest.raises(DataError, match="value"):
        decode(json.dumps(event | {"value": "yes"}).encode(), EventBody, JSON)


def test_every_reference_of_the_schema_leads_somewhere():
    references, components = schemas()
    text = json.dumps([references, components])
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(components)
    assert {"RankBody", "EventBody"} <= set(references)
