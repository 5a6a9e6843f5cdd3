import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infnet.errors import StoreError
from infnet.serving import store_feeder
from infnet.serving.features import Wanted
from service_parts import Parts, count, records, running, wait_until

FATES = ("accepted", "duplicate", "rejected")


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(store_feeder, "_EVERY_S", 0.01)


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path) as parts:
        parts.feed()
        yield parts


def now():
    return time.time_ns() // 1_000_000


def fates(parts):
    return [count(parts.metrics, "infnet_events_total", fate=fate) for fate in FATES]


def counted(reply):
    return reply.accepted, reply.duplicates, len(reply.rejected)


def rejected(parts):
    return records(parts.directory / "events", "rejected")


def logged(parts):
    return [record["event_id"] for record in parts.events()]


def test_what_is_accepted_is_in_the_log_and_in_the_users_history(parts):
    at = now()
    reply = parts.tell({"user_id": "new", "time_ms": at}, {"user_id": "new", "type": "like", "item_id": 8})
    assert counted(reply) == (2, 0, 0)
    click, like = parts.events()
    assert (
        click.items()
        >= {
            "event_id": f"r/7/click/{at}",
            "request_id": "r",
            "item_id": "7",
            "type": "click",
            "time_ms": at,
            "value": 1.0,
            "user_id": "new",
        }.items()
    )
    assert like["event_id"] == "r/8/like"
    assert at <= like["time_ms"] <= now()
    assert parts.history("new") == [("7", at)]
    assert parts.history("new", "like") == [("8", like["time_ms"])]
    assert fates(parts) == [2, 0, 0]


def test_nothing_is_told_to_anybody_before_the_log_has_it(parts):
    seen = []
    parts.store.before = lambda name, *_: seen.append((name, logged(parts))) if name == "append" else None
    parts.tell({"user_id": "new", "event_id": "e1"}, {"user_id": "new", "event_id": "e2", "item_id": "8"})
    assert seen == [("append", ["e1", "e2"])]


def test_what_the_log_does_not_take_has_not_happened(parts):
    parts.memory.served("r", "new", ["7"], [], [])
    parts.log.breaks["append_events"] = 1
    with pytest.raises(StoreError):
        parts.tell({"user_id": "new"})
    assert logged(parts) == []
    assert parts.history("new") == []
    assert fates(parts) == [0, 0, 0]
    assert count(parts.metrics, "infnet_event_log_failures_total") == 1
    assert counted(parts.tell({"user_id": "new"})) == (1, 0, 0)  # sent again, it is no duplicate
    assert len(parts.history("new")) == 1


def test_an_event_id_is_taken_once(parts):
    one = {"event_id": "e1", "user_id": "new"}
    assert counted(parts.tell(one, one, {"event_id": "e2", "item_id": "8"}, one)) == (2, 2, 0)
    assert counted(parts.tell({**one, "item_id": "9", "type": "like"}, {"event_id": "e3"})) == (1, 1, 0)
    assert logged(parts) == ["e1", "e2", "e3"]
    assert [item for item, _ in parts.history("new")] == ["7"]
    assert fates(parts) == [3, 3, 0]


def test_without_an_id_request_item_type_and_time_are_it(parts):
    at = now()
    different = [
        {},
        {"request_id": "r2"},
        {"item_id": "8"},
        {"type": "like"},
        {"time_ms": at},
        {"time_ms": at - 1},
    ]
    assert counted(parts.tell(*different)) == (6, 0, 0)
    assert counted(parts.tell(*different, {"item_id": 7}, {"value": 3, "user_id": "u9"})) == (0, 8, 0)


def test_events_of_different_items_are_no_duplicates_whatever_their_keys_are(parts):
    two = [{"request_id": "a/b", "item_id": "c"}, {"request_id": "a", "item_id": "b/c"}]
    assert counted(parts.tell(*two)) == (2, 0, 0)


@pytest.mark.parametrize("writer", ["w", "other"])
def test_duplicates_are_known_after_a_restart_whoever_wrote_them(parts, bundle, tmp_path, writer):
    parts.tell({"event_id": "e1"}, {"event_id": "e2"})
    parts.close()
    with Parts(bundle, tmp_path, writer=writer) as next_life:
        assert counted(next_life.tell({"event_id": "e2"}, {"event_id": "e3"}, {"event_id": "e1"})) == (1, 2, 0)
        assert logged(next_life).count("e1") == logged(next_life).count("e2") == 1


def test_the_same_events_sent_by_several_threads_at_once_are_taken_once(parts):
    accepted = []

    def tell():
        for number in range(40):
            accepted.append(parts.tell({"event_id": f"e{number}", "user_id": "new", "item_id": number}).accepted)

    with running(*[tell] * 4):
        pass
    assert sum(accepted) == 40
    assert sorted(logged(parts)) == sorted(f"e{number}" for number in range(40))
    assert fates(parts) == [40, 120, 0]
    assert len(parts.history("new")) == 40


def test_events_that_are_late_or_out_of_order_are_taken_and_the_history_goes_by_their_times(parts):
    at = now()
    for back, item in ((0, "3"), (86_400_000, "1"), (1000, "2")):
        assert parts.tell({"user_id": "new", "time_ms": at - back, "item_id": item}).accepted == 1
    assert [item for item, _ in parts.history("new")] == ["3", "2", "1"]


def test_a_clock_may_be_five_minutes_ahead_and_no_more(parts):
    at = now()
    reply = parts.tell({"time_ms": at + 295_000}, {"time_ms": at + 305_000}, {"time_ms": 0})
    assert counted(reply) == (2, 0, 1)
    assert reply.rejected[0].index == 1
    assert "ahead of the clock" in reply.rejected[0].reason


def test_a_value_of_0_is_logged_and_enters_no_history(parts):
    assert parts.tell({"user_id": "new", "value": 0}, {"user_id": "new", "value": False, "item_id": "8"}).accepted == 2
    assert [record["value"] for record in parts.events()] == [0.0, 0.0]
    assert parts.history("new") == []


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"{", "no json"),
        (b"", "no json"),
        (b"null", "Expected `object`"),
        (b"[]", "Expected `object`"),
        (b'{"request_id": "r", "item_id": "7"}', "type"),
        (b'{"request_id": "r", "item_id": "7", "type": "clik"}', "did you mean 'click'"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "value": "much"}', "value"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "value": NaN}', "no json"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "value": 1e999}', "out of range"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "time_ms": -1}', "time_ms"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "time_ms": 1e30}', "time_ms"),
        (b'{"request_id": "r", "item_id": 123456789012345678901, "type": "click"}', "item_id"),
        (b'{"request_id": "r", "item_id": "\\ud800", "type": "click"}', "surrogate"),
        (b'{"request_id": "\xff", "item_id": "7", "type": "click"}', "UTF-8"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "event_id": ""}', "event_id"),
        (b'{"request_id": "r", "item_id": "7", "type": "click", "users": 1}', "users"),
        (b'{"request_id": ' + b"[" * 100_000, "request_id"),
    ],
)
def test_what_is_no_event_is_set_aside_with_the_reason_and_the_rest_is_taken(parts, raw, wanted):
    good = [json.dumps({"request_id": "r", "item_id": item, "type": "click"}).encode() for item in "78"]
    reply = parts.ingest.take([good[0], raw, good[1]])
    assert counted(reply) == (2, 0, 1)
    (rejection,) = reply.rejected
    assert rejection.index == 1
    assert wanted in rejection.reason
    assert "\n" not in rejection.reason
    (record,) = rejected(parts)
    assert record["reason"] == rejection.reason
    assert record["raw"] == raw[:16_384].decode(errors="backslashreplace")
    assert record["num_bytes"] == len(raw)
    assert fates(parts) == [2, 0, 1]


def test_a_body_that_is_no_list_of_events_can_be_kept_as_it_is(parts):
    parts.ingest.set_aside(b"\x00\xffwhatever", "is no JSON")
    (record,) = rejected(parts)
    assert (record["raw"], record["reason"]) == ("\x00\\xffwhatever", "is no JSON")
    assert fates(parts) == [0, 0, 1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "request_id": st.text(max_size=4) | json_values,
        "item_id": st.text(max_size=4) | st.integers() | json_values,
        "type": st.sampled_from(["click", "like", "watch", "impression"]) | json_values,
        "time_ms": st.integers() | json_values,
        "value": st.floats() | json_values,
        "event_id": st.text(max_size=3) | json_values,
        "user_id": st.text(max_size=3) | json_values,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.binary(max_size=20) | fields.map(lambda event: json.dumps(event).encode()), max_size=4))
def test_every_event_has_one_fate_whatever_it_is(parts, events):
    before = len(logged(parts))
    reply = parts.ingest.take(events)
    assert sum(counted(reply)) == len(events)
    assert len(logged(parts)) == before + reply.accepted
    assert len({rejection.index for rejection in reply.rejected}) == len(reply.rejected)
    assert not parts.feeder.is_behind


def test_an_event_is_its_requests_users_unless_it_says_otherwise(parts):
    parts.memory.served("r", "ada", ["7"], [], [])
    parts.features.fetch(parts.holder.live, [Wanted("r2", "bob", ["7"], now())])  # another process may have
    parts.tell({}, {"item_id": "8", "user_id": 5}, {"request_id": "r2"}, {"request_id": "unheard"})
    assert [record.get("user_id") for record in parts.events()] == ["ada", "5", "bob", None]
    assert [len(parts.history(user)) for user in ("ada", "5", "bob")] == [1, 1, 1]


def test_without_the_store_events_of_unknown_requests_are_taken_and_belong_to_nobody_yet(parts):
    parts.store.is_down = True
    assert counted(parts.tell({"request_id": "unheard"})) == (1, 0, 0)
    assert parts.events()[0].get("user_id") is None


def test_an_event_of_a_request_that_was_served_before_a_restart_enters_its_users_history(parts, bundle, tmp_path):
    reply = parts.answer("new", [7])
    parts.close()
    with Parts(bundle, tmp_path) as next_life:
        next_life.feed()
        next_life.tell({"request_id": reply.request_id})
        assert [item for item, _ in next_life.history("new")] == ["7"]


def test_while_the_store_fails_events_are_accepted_and_enter_the_history_afterwards(parts):
    parts.store.is_down = True
    for number in range(5):
        told = {"user_id": "new", "item_id": number, "time_ms": now() - 1000 * number}
        assert counted(parts.tell(told)) == (1, 0, 0)
    assert len(logged(parts)) == 5
    parts.store.is_down = False
    wait_until(lambda: not parts.feeder.is_behind)
    assert [item for item, _ in parts.history("new")] == ["0", "1", "2", "3", "4"]


def test_which_types_there_are_is_said_by_the_model_that_is_live(parts):
    types = parts.holder.live.event_types
    assert types == {"impression", "click", "like", "watch"}
    assert counted(parts.tell(*({"type": kind} for kind in sorted(types)), {"type": "share"})) == (4, 0, 1)


def test_events_count_for_calibration_once_they_are_taken(parts):
    reply = parts.answer("u1", [7])
    (item,) = reply.items
    parts.tell(*({"request_id": reply.request_id, "type": kind} for kind in ("impression", "click", "impression")))
    assert count(parts.metrics, "infnet_expected_total", task="click") == pytest.approx(item.tasks["click"])
    assert count(parts.metrics, "infnet_observed_total", task="click") == 1
