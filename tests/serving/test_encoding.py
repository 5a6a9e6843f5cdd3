import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from infnet.data.batches import gap_buckets
from infnet.errors import DataError
from infnet.serving import encoding as module
from infnet.serving.encoding import RankRequest, RequestEncoder
from raw_logs import DAY_MS, MAY_1
from small_bundle import NEWCOMER, NUM_USERS, frames, requests_of_log, state_at

AT = MAY_1 + 5 * DAY_MS
QUARTER_MS = 900_000


@pytest.fixture(scope="session")
def encoder(bundle):
    return RequestEncoder(bundle)


@pytest.fixture(scope="session")
def requests(dataset):
    return requests_of_log(dataset, "valid")


def assert_equal_values(found, wanted):
    for mine, plain in zip(found, wanted, strict=True):
        assert mine.dtype == plain.dtype
        assert np.array_equal(mine, plain)


def test_requests_are_encoded_as_preparation_encoded_their_rows(encoder, dataset, requests):
    rows = dataset.rows("valid")
    for row, request in enumerate(requests):
        found = encoder.encode(request)
        assert_equal_values(found.context, (rows.context[row], rows.context_dense[row]))
        assert_equal_values(found.candidate, (rows.candidate[row][None], rows.candidate_dense[row][None]))
        assert found.items.tolist() == [rows.item[row]]
        for a, (behaviour, history) in enumerate(zip(dataset.layout.behaviours, dataset.histories, strict=True)):
            end, start = rows.ends[row, a], history.starts[rows.user[row]]
            places = np.arange(max(start, end - behaviour.length), end)[::-1]
            assert found.histories[a].tolist() == history.items[places].tolist()
            assert found.gaps[a].tolist() == gap_buckets(rows.time[row] - history.times[places]).tolist()


def test_a_user_of_the_bundle_is_who_they_were_when_the_dataset_ended(encoder, dataset):
    keys = pl.read_parquet(dataset.path / "users/keys.parquet")["key"].to_list()
    assert len(keys) == NUM_USERS
    for user, key in enumerate(["nobody", *keys]):
        found = encoder.snapshot(key)
        assert_equal_values(found.values, (dataset.users.ids[user], dataset.users.dense[user]))
        pairs = zip(dataset.layout.behaviours, dataset.histories, strict=True)
        for a, (behaviour, history) in enumerate(pairs):
            own = slice(history.starts[user], history.starts[user + 1])
            assert found.histories[a].tolist() == history.items[own][::-1][: behaviour.length].tolist()
            assert found.times[a].tolist() == history.times[own][::-1][: behaviour.length].tolist()
    assert [len(history) for history in encoder.snapshot("nobody").histories] == [0, 0]


def test_a_user_described_by_raw_values_is_the_user_of_the_bundle(encoder):
    log, people = frames()["log.parquet"], frames()["users.parquet"].to_dicts()
    for person in people:
        own = log.filter(pl.col("user") == person["user"]).sort("time_ms", descending=True)
        events = {name: own.filter(pl.col(name) == 1).select("item", "time_ms").rows() for name in ("like", "click")}
        features = {name: person[name] for name in ("years", "karma")}
        found, wanted = encoder.describe(person["user"], features, events), encoder.snapshot(person["user"])
        assert_equal_values(found.values, wanted.values)
        for mine, plain in zip((*found.histories, *found.times), (*wanted.histories, *wanted.times), strict=True):
            assert mine[: len(plain)].tolist() == plain.tolist()
    assert people[-1]["user"] == NEWCOMER


def test_events_of_unknown_items_are_left_out(encoder):
    found = encoder.describe("u1", {}, {"click": [(3, AT - 1), ("?", AT - 2), ("4", AT - 3)]})
    assert found.histories[0].tolist() == encoder.describe("u1", {}, {"click": [(3, 0), (4, 0)]}).histories[0].tolist()
    assert found.times[0].tolist() == [AT - 1, AT - 3]
    assert len(found.histories[0]) == 2
    assert len(found.histories[1]) == 0


def test_what_is_left_out_is_missing_and_what_was_never_seen_unknown(encoder, bundle):
    fitted, columns = bundle.encoder, bundle.layout.id_columns("context")
    absent = encoder.encode(RankRequest("u1", [1], time_ms=AT))
    strange = encoder.encode(RankRequest("u1", [1], {"tab": "t99"}, time_ms=AT))
    assert absent.context.ids[columns["tab"]].tolist() == fitted.missing("tab").tolist()
    assert strange.context.ids[columns["tab"]].tolist() == fitted.unknown("tab").tolist()
    own = bundle.layout.id_columns("candidate")
    assert absent.candidate.ids[0, own["reasons"]].tolist() == fitted.missing("reasons").tolist()
    assert absent.candidate.dense.tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RankRequest("u1", [1], {"tap": "t1"}), "no context feature is called 'tap'; did you mean 'tab'"),
        (RankRequest("u1", [1], {"rank": 3}), "no context feature is called 'rank'"),
        (RankRequest("u1", [1], {}, {"ranc": [3]}), "no candidate feature is called 'ranc'; did you mean 'rank'"),
        (RankRequest("u1", [1], {}, {"item_age": [3]}), "no candidate feature is called 'item_age'"),
        (RankRequest("u1", [1, 2], {}, {"rank": [3]}), "candidate feature 'rank' has 1 values, wanted 2"),
        (RankRequest("u1", [1], {"temperature": "hot"}), "'temperature' is 'hot', wanted a number"),
        (RankRequest("u1", [1, 2], {}, {"rank": [3, "much"]}), "value 1 of feature 'rank' is 'much', wanted a number"),
        (RankRequest("u1", [1, None]), "key None is of type NoneType, wanted text or an integer"),
    ],
)
def test_a_mistake_is_named(encoder, request_, message):
    for _ in range(2):
        with pytest.raises(DataError) as error:
            encoder.encode(request_)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("features", "events", "message"),
    [
        ({"year": 3}, {}, "no user feature is called 'year'; did you mean 'years'"),
        ({}, {"clicks": []}, "no behaviour is called 'clicks'; did you mean 'click'"),
        ({"years": "young"}, {}, "'years' is 'young', wanted a number"),
    ],
)
def test_a_mistake_in_a_users_description_is_named(encoder, features, events, message):
    with pytest.raises(DataError) as error:
        encoder.describe("u1", features, events)
    assert message in str(error.value)


def test_hours_change_when_the_clock_does_and_not_before(encoder, bundle):
    place = bundle.layout.id_columns("context")["hour"]

    def row(at):
        return encoder.encode(RankRequest("u1", [1], time_ms=at)).context.ids[place].tolist()

    assert row(AT) == row(AT + 1) == row(AT + 4 * QUARTER_MS - 1)
    assert row(AT + 4 * QUARTER_MS) == row(AT + 5 * QUARTER_MS) != row(AT)
    assert row(AT) == bundle.encoder.encode("hour", [None], [AT])[0].tolist()


def test_true_is_not_one_whatever_was_asked_before(encoder, bundle):
    place = bundle.layout.id_columns("context")["tab"]

    def row(raw):
        return encoder.encode(RankRequest("u1", [1], {"tab": raw}, time_ms=AT)).context.ids[place].tolist()

    assert row(1) == row(1.0) == row("1") != row(True)
    for raw in (True, 1, "1", 1.0, False, 0, None, "t2"):
        assert row(raw) == bundle.encoder.encode("tab", [raw])[0].tolist()


def test_threads_that_forget_each_others_values_encode_them_all(bundle, monkeypatch):
    monkeypatch.setattr(module, "_MOST_REMEMBERED", 2)
    encoder = RequestEncoder(bundle)
    place, tabs = bundle.layout.id_columns("context")["tab"], ["1", "t2", "t3", "t9", None]
    wanted = bundle.encoder.encode("tab", tabs).tolist()

    def encode_some(seed):
        chosen = np.random.default_rng(seed).integers(0, len(tabs), 100)
        requests = [RankRequest("u1", [1], {"tab": tabs[i]}, time_ms=AT) for i in chosen]
        return [encoder.encode(r).context.ids[place].tolist() for r in requests] == [wanted[i] for i in chosen]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(encode_some, range(8)))
    assert len(encoder._remembered) <= 2 + 8


def test_a_state_may_be_longer_than_the_model_reads(encoder, dataset):
    lengths = [behaviour.length for behaviour in dataset.layout.behaviours]
    states = [state_at(dataset, "valid", row) for row in range(dataset.num_rows("valid"))]
    longest = max(states, key=lambda state: len(state.histories[0]))
    assert len(longest.histories[0]) > lengths[0]
    found = encoder.encode(RankRequest(longest, [1], time_ms=AT))
    assert [len(history) for history in found.histories] == [len(gaps) for gaps in found.gaps] == lengths


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": "12"}, "candidates is the text '12', wanted a list of item keys"),
        ({"time_ms": "x"}, "time 'x' is no time; wanted an integer, milliseconds since 1970"),
        ({"time_ms": 1.5}, "time 1.5 is no time"),
        ({"time_ms": 10**19}, "time 10000000000000000000 is no time"),
        ({"candidate_values": {"rank": None}}, "candidate feature 'rank' is None, wanted a list"),
        ({"candidate_values": {"rank": "5"}}, "candidate feature 'rank' is '5', wanted a list"),
        ({"context": {"tab": "\ud800"}}, "feature 'tab': cannot read"),
        ({"context": {"tab": ["1", "2"]}}, "feature 'tab' of kind category cannot read its values"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(encoder, changes, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        encoder.encode(RankRequest(**({"user": "u1", "candidates": [1]} | changes)))


def test_an_event_without_a_time_is_named(encoder):
    with pytest.raises(DataError, match="time 'yesterday' is no time"):
        encoder.describe("u1", {}, {"click": [(1, "yesterday")]})
