from contextlib import closing

import polars as pl
import pytest

from infnet.data.dataset import Dataset
from infnet.errors import StoreError
from infnet.serving.feature_store import load, open_store
from infnet.serving.feature_store.base import Lookup, history_bounds
from infnet.serving.feature_store.load import load_store
from infnet.serving.feature_store.redis import RedisStore
from raw_logs import DAY_MS, MAY_1, make_spec, prepare_frames

LATE = 2**53
MANY = {"click": 1000, "like": 1000}


@pytest.fixture(params=["embedded", "redis"])
def open_with(request, tmp_path):
    stores = []

    def make(bounds):
        place = f"{request.node.name}{len(stores)}"
        if request.param == "embedded":
            stores.append(open_store(tmp_path / place, bounds))
        else:
            url = request.getfixturevalue("redis_server").url
            stores.append(RedisStore(url, bounds, timeout_s=10, namespace=place))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def histories(store, users, behaviours=("click", "like")):
    """Per user and behaviour (item, time), oldest first."""
    found = store.fetch([Lookup(user, before=dict.fromkeys(behaviours, LATE)) for user in users])
    return [[[*zip(*f.user.histories[b], strict=True)][::-1] for b in behaviours] for f in found]


def wanted_of(source, keys_of, bound, before_ms=LATE):
    users = keys_of("users")
    items = ["?", *keys_of("items")]
    result = []
    for user in range(1, len(users) + 1):
        parts = []
        for history in source.histories:
            own = slice(history.starts[user], history.starts[user + 1])
            events = zip(history.items[own].tolist(), history.times[own].tolist(), strict=True)
            parts.append([(items[item], at) for item, at in events if at < before_ms][-bound:])
        result.append(parts)
    return users, result


def keys_of_dataset(dataset):
    return lambda side: pl.read_parquet(dataset.path / side / "keys.parquet")["key"].to_list()


@pytest.mark.parametrize(("bound", "before_ms"), [(1000, None), (3, None), (1000, MAY_1 + DAY_MS), (2, MAY_1 + DAY_MS)])
def test_each_user_has_their_last_events_before_a_time(dataset, open_with, bound, before_ms):
    store = open_with(dict.fromkeys(MANY, bound))
    users, wanted = wanted_of(dataset, keys_of_dataset(dataset), bound, before_ms or LATE)
    assert load_store(store, dataset, before_ms=before_ms) == sum(len(part) for parts in wanted for part in parts)
    assert histories(store, users) == wanted
    assert any(len(part) == bound or bound > len(part) > 3 for parts in wanted for part in parts)


def test_a_bundle_is_loaded_like_its_dataset(dataset, bundle, open_with):
    bounds = {b.name: b.length for b in bundle.layout.behaviours}
    from_bundle, from_dataset = open_with(bounds), open_with(bounds)
    assert load_store(from_bundle, bundle) == load_store(from_dataset, dataset)
    users = keys_of_dataset(dataset)("users")
    assert histories(from_bundle, users) == histories(from_dataset, users)


def test_how_many_are_loaded_at_once_changes_nothing(dataset, open_with, monkeypatch):
    stores, told = [open_with(MANY), open_with(MANY)], []
    total = load_store(stores[0], dataset)
    monkeypatch.setattr(load, "_CHUNK", 7)
    assert load_store(stores[1], dataset, progress=lambda done, of: told.append((done, of))) == total
    users = keys_of_dataset(dataset)("users")
    assert histories(stores[0], users) == histories(stores[1], users)
    assert len(told) > 10
    assert told == sorted(told)
    assert told[-1] == (total, total)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """One user's events of which many are at one time, in the order of their items."""
    rows = [{"user": 1, "item": n, "time_ms": MAY_1 + n // 5 * 1000, "click": 1} for n in (*range(5, 17), 17, 18, 19)]
    rows += [{"user": 2, "item": 99 - n, "time_ms": MAY_1, "click": 1} for n in range(6)]
    rows += [
        {"user": user, "item": 1, "time_ms": MAY_1 + day * DAY_MS, "click": 0} for user in (1, 2) for day in (1, 2)
    ]
    return prepare_frames(make_spec(), tmp_path_factory.mktemp("tied"), {"log.csv": pl.DataFrame(rows)})[0].path


def test_ties_keep_the_order_of_the_stream_and_loading_again_changes_nothing(tied, open_with):
    store, dataset = open_with({"click": 7}), Dataset.open(tied)
    for before_ms in (MAY_1 + 3000, None, None):
        load_store(store, dataset, before_ms=before_ms)
    assert [[item for item, _ in part] for (part,) in histories(store, ["1", "2"], ["click"])] == [
        [str(n) for n in range(13, 20)],
        [str(99 - n) for n in range(6)],
    ]


def test_a_store_that_fails_for_a_moment_is_filled_all_the_same(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_PAUSES_S", (0.0, 0.0))
    with closing(open_store(tmp_path, MANY)) as store:
        append, failures = store.append, iter([True, True, False])

        def fails_twice(events):
            if next(failures, False):
                raise StoreError("away")
            append(events)

        monkeypatch.setattr(store, "append", fails_twice)
        total = load_store(store, dataset)
        assert (
            sum(len(part) for parts in histories(store, keys_of_dataset(dataset)("users")) for part in parts) == total
        )
        failures = iter([True] * 3)
        with pytest.raises(StoreError, match="away"):
            load_store(store, dataset)


def test_what_comes_late_finds_room_beside_what_a_model_reads(dataset):
    assert history_bounds(dataset.layout.behaviours, {"like": 3600.0}) == {"click": 4 + 50, "like": 2 + 1000}
