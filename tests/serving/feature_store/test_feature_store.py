"""What every feature store promises, and both keep."""

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.errors import DataError
from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import Fetched, History, HistoryEvent, Lookup, UserRecord
from infnet.serving.feature_store.redis import RedisStore

BOUNDS = {"click": 5, "like": 3}
LATE = 2**53
EVERYTHING = {"click": LATE, "like": LATE}
ODD_KEYS = [
    "",
    " ",
    "a b",
    "7,8",
    "{u}",
    "}{",
    "a:b",
    "naïve 日本 🙂",
    "line\nbreak",
    "nul\x00",
    "\ud800",
    "x" * 5000,
    "-1",
    '"',
]

_number = itertools.count()


@pytest.fixture(scope="module", params=["embedded", "redis"])
def stores(request, tmp_path_factory):
    """Makes empty stores."""
    made = []

    def make(**options):
        if request.param == "embedded":
            store = open_store(tmp_path_factory.mktemp("store"), BOUNDS, **options)
        else:
            server = request.getfixturevalue("redis_server")
            store = RedisStore(server.url, BOUNDS, timeout_s=10, namespace=f"test{next(_number)}", **options)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(stores):
    return stores()


def click(item, time_ms, order=0, user="u"):
    return HistoryEvent(user, "click", item, time_ms, order)


def clicks(store, user="u", before=LATE, **limits):
    (found,) = store.fetch([Lookup(user, before={"click": before}, limits=limits)])
    assert list(found.user.histories) == ["click"]
    return [*zip(*found.user.histories["click"], strict=True)]


def test_a_history_is_most_recent_first_whatever_the_order_of_arrival(store):
    store.append([click("b", 20), click("d", 40)])
    store.append([click("a", -10)])
    store.append([click("c", 30)])
    assert clicks(store) == [("d", 40), ("c", 30), ("b", 20), ("a", -10)]


def test_events_of_one_time_go_by_their_order_and_then_by_their_item(store):
    store.append(
        [click("z", 10, 1), click("a", 10, 300), click("m", 10, 2**63 - 1), click("b", 10, 300), click("c", 9)]
    )
    assert [item for item, _ in clicks(store)] == ["m", "b", "a", "z", "c"]


def test_only_what_is_strictly_before_is_told(store):
    store.append([click("a", 10), click("b", 20), click("c", 30)])
    assert clicks(store, before=20) == [("a", 10)]
    assert clicks(store, before=21) == [("b", 20), ("a", 10)]
    assert clicks(store, before=10) == []
    assert len(clicks(store, before=2**70)) == 3
    assert clicks(store, before=-(2**70)) == []


def test_each_behaviour_has_its_own_time_and_limit(store):
    store.append([HistoryEvent("u", name, f"{name}{at}", at, 0) for name in BOUNDS for at in range(3)])
    lookup = Lookup("u", before={"click": 2, "like": 3, "share": 9}, limits={"click": 1})
    (found,) = store.fetch([lookup])
    assert found.user == UserRecord(
        None,
        {
            "click": History(["click1"], [1]),
            "like": History(["like2", "like1", "like0"], [2, 1, 0]),
            "share": History([], []),
        },
    )
    assert clicks(store, click=2) == [("click2", 2), ("click1", 1)]
    (nothing,) = store.fetch([Lookup("u")])
    assert nothing == Fetched(UserRecord(None, {}), [])


def test_events_from_a_time_on_may_be_asked_for(store):
    store.append([click("a", 10), click("b", 20), click("c", 30), HistoryEvent("u", "like", "d", 5, 0)])
    lookup = Lookup("u", before={"click": 30, "like": 30}, since={"click": 20})
    (found,) = store.fetch([lookup])
    assert found.user.histories == {"click": History(["b"], [20]), "like": History(["d"], [5])}
    (found,) = store.fetch([replace(lookup, since={"click": -(2**70), "like": 6})])
    assert found.user.histories == {"click": History(["b", "a"], [20, 10]), "like": History([], [])}


def test_the_most_recent_events_are_kept_up_to_the_bound(store):
    store.append([click(str(at), at) for at in range(20)])
    assert clicks(store) == [(str(at), at) for at in range(19, 14, -1)]
    store.append([click("old", 3), click("new", 99)])
    assert clicks(store) == [("new", 99), *((str(at), at) for at in range(19, 15, -1))]
    store.append([HistoryEvent("u", "share", str(at), at, 0) for at in range(1200)])
    (found,) = store.fetch([Lookup("u", before={"share": LATE})])
    assert found.user.histories["share"].times == [*range(1199, 199, -1)]


def test_an_event_appended_again_is_the_same_event(store):
    events = [click("a", 10, 1), click("a", 10, 2), click("a", 11, 1), click("b", 10, 1)]
    for some in (events, events[:2], events[::-1], [*events, *events]):
        store.append(some)
    assert clicks(store) == [("a", 11), ("a", 10), ("b", 10), ("a", 10)]


def test_users_and_behaviours_do_not_mix(store):
    store.append([click("a", 1, user="1"), click("b", 2, user="11"), HistoryEvent("1", "like", "c", 3, 0)])
    assert clicks(store, "1") == [("a", 1)]
    assert clicks(store, "11") == [("b", 2)]
    assert clicks(store, "2") == []


def test_features_are_what_was_put_last(store):
    first, second = {"age": 30, "tags": ["x", "y"], "score": 0.1, "none": None}, {"name": "é", "big": 2**60}
    (before,) = store.fetch([Lookup("u", ["i"])])
    assert before == Fetched(UserRecord(None, {}), [None])
    store.put_users({"u": first, "v": {}})
    store.put_items({"i": first, "j": {}})
    found, other = store.fetch([Lookup("u", ["j", "i", "k", "i"]), Lookup("v")])
    assert (found.user.values, found.items) == (first, [{}, first, None, first])
    assert other == Fetched(UserRecord({}, {}), [])
    store.put_users({"u": second})
    store.put_items({"i": second})
    (found,) = store.fetch([Lookup("u", ["i"])])
    assert (found.user.values, found.items) == (second, [second])


def test_users_of_requests_are_remembered(store):
    assert store.users_of(["r1"]) == [None]
    store.fetch([Lookup("ada", request_id="r1"), Lookup("bob", request_id="r2"), Lookup("eve")])
    store.fetch([Lookup("ann", request_id="r2")])
    assert store.users_of(["r2", "r1", "r3", "r2"]) == ["ann", "ada", None, "ann"]
    assert store.users_of([]) == []


def test_notes_are_kept(store):
    assert store.marked("loaded") is None
    store.mark("loaded", "v1")
    store.mark("read", "é 12")
    store.mark("loaded", "v2")
    assert (store.marked("loaded"), store.marked("read")) == ("v2", "é 12")


def test_a_note_may_depend_on_one_that_is_there(store):
    assert not store.mark("read", "1", anew=False)
    assert store.marked("read") is None
    assert store.mark("read", "1")
    assert store.mark("read", "2", anew=False)
    assert store.marked("read") == "2"


def test_many_lookups_at_once_are_answered_like_single_ones(store):
    rng = random.Random(0)
    users, items = [f"u{i}" for i in range(20)], [f"i{i}" for i in range(50)]
    store.append(
        [
            HistoryEvent(rng.choice(users), rng.choice([*BOUNDS]), rng.choice(items), rng.randrange(99), n)
            for n in range(300)
        ]
    )
    store.put_users({user: {"name": user} for user in users[::2]})
    store.put_items({item: {"rank": item} for item in items[::3]})
    lookups = [
        Lookup(rng.choice([*users, "x"]), rng.sample(items, rng.randrange(9)), {b: rng.randrange(120) for b in BOUNDS})
        for _ in range(60)
    ]
    lookups = [replace(lookup, request_id=f"r{n}" if n % 2 else None) for n, lookup in enumerate(lookups)]
    assert store.fetch(lookups) == [store.fetch([lookup])[0] for lookup in lookups]
    assert store.users_of([f"r{n}" for n in range(60)]) == [k.user if n % 2 else None for n, k in enumerate(lookups)]
    assert store.fetch([]) == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_may_be_any_text(store, key):
    store.append([click(key, 5, user=key)])
    store.put_users({key: {"of": "user"}})
    store.put_items({key: {"of": "item"}})
    store.mark(key, key)
    (found,) = store.fetch([Lookup(key, [key, "other"], {"click": 9}, request_id=key)])
    assert found == Fetched(UserRecord({"of": "user"}, {"click": History([key], [5])}), [{"of": "item"}, None])
    assert (store.users_of([key]), store.marked(key)) == ([key], key)


def test_what_is_not_written_for_long_enough_is_forgotten_and_notes_are_not(stores):
    store = stores(ttl_s=1.5)
    store.append([click("a", 1), click("b", 2, user="v")])
    store.put_users({"u": {"x": 1}, "v": {"x": 1}})
    store.put_items({"i": {"x": 1}, "j": {"x": 1}})
    store.mark("loaded", "v1")
    time.sleep(1.0)
    store.append([click("c", 3)])
    store.put_users({"u": {"x": 2}})
    store.put_items({"i": {"x": 2}})
    time.sleep(1.0)
    kept, lost = store.fetch([Lookup("u", ["i", "j"], {"click": 9}), Lookup("v", ["j"], {"click": 9})])
    assert kept == Fetched(UserRecord({"x": 2}, {"click": History(["c", "a"], [3, 1])}), [{"x": 2}, None])
    assert lost == Fetched(UserRecord(None, {"click": History([], [])}), [None])
    store.append([click("d", 4, user="v")])
    assert clicks(store, "v") == [("d", 4)]
    assert store.marked("loaded") == "v1"


@pytest.mark.parametrize(
    "event",
    [click("a", 2**53 + 1), click("a", -(2**53) - 1), click("a", 10**30), click("a", 1, -1), click("a", 1, 2**63)],
)
def test_an_event_out_of_range_is_refused_and_nothing_with_it(store, event):
    with pytest.raises(DataError, match="item 'a'"):
        store.append([click("b", 1), event])
    assert clicks(store) == []


@pytest.mark.parametrize("put", ["put_users", "put_items"])
def test_a_value_without_json_is_refused_and_nothing_with_it(store, put):
    for value in (object(), 1j, "\ud800"):
        with pytest.raises(DataError, match="features of 'b' cannot be kept"):
            getattr(store, put)({"a": {"x": 1}, "b": {"x": value}})
    (found,) = store.fetch([Lookup("a", ["a"])])
    assert found == Fetched(UserRecord(None, {}), [None])


def test_threads_that_append_and_fetch_lose_nothing_and_see_no_halves(store):
    users, rounds = [f"u{i}" for i in range(4)], 40

    def write(worker):
        for n in range(rounds):
            pair = [click(f"{worker}-{n}-{half}", 10 * n + worker, half, user) for user in users for half in (0, 1)]
            store.append(pair)

    def read(_):
        for _round in range(rounds):
            for user in users:
                items = [item for item, _ in clicks(store, user)][:4]
                assert all(a[:-1] == b[:-1] for a, b in zip(items[::2], items[1::2], strict=False))

    with ThreadPoolExecutor(6) as pool:
        for done in [*pool.map(lambda job: job[0](job[1]), [(write, 0), (write, 1), (write, 2), *[(read, 0)] * 3])]:
            assert done is None
    for user in users:
        assert [item for item, _ in clicks(store, user)] == ["2-39-1", "2-39-0", "1-39-1", "1-39-0", "0-39-1"]


def test_it_answers(store):
    assert store.ping() is None


class PlainStore:
    """The promise, written down."""

    def __init__(self):
        self.histories, self.users, self.items, self.requests, self.marks = {}, {}, {}, {}, {}

    def append(self, events):
        for user, behaviour, item, time_ms, order in events:
            kept = self.histories.setdefault((user, behaviour), set())
            kept.add((time_ms, order, item.encode(), item))
        for (_, behaviour), kept in self.histories.items():
            for oldest in sorted(kept)[: -BOUNDS[behaviour]]:
                kept.remove(oldest)

    def fetch(self, lookups):
        self.requests |= {k.request_id: k.user for k in lookups if k.request_id}
        return [Fetched(self._user(k), [self.items.get(item) for item in k.items]) for k in lookups]

    def _user(self, lookup):
        histories = {}
        for behaviour, before in lookup.before.items():
            events = sorted(self.histories.get((lookup.user, behaviour), ()), reverse=True)
            since = lookup.since.get(behaviour, -LATE)
            seen = [e for e in events if since <= e[0] < before][: lookup.limits.get(behaviour)]
            histories[behaviour] = History([e[3] for e in seen], [e[0] for e in seen])
        return UserRecord(self.users.get(lookup.user), histories)

    def put_users(self, values):
        self.users |= values

    def put_items(self, values):
        self.items |= values

    def mark(self, name, value, *, anew=True):
        if anew or name in self.marks:
            self.marks[name] = value
        return anew or name in self.marks

    def marked(self, name):
        return self.marks.get(name)

    def users_of(self, request_ids):
        return [self.requests.get(request_id) for request_id in request_ids]


keys = st.sampled_from(["a", "b", "é", "a\x00"])
times = st.integers(-2, 6)
events = st.builds(HistoryEvent, keys, st.sampled_from([*BOUNDS]), keys, times, st.integers(0, 2))
features = st.dictionaries(keys, st.dictionaries(keys, st.none() | st.integers(0, 9) | st.text(max_size=3)), max_size=3)
befores = st.dictionaries(st.sampled_from([*BOUNDS]), times)
limits = st.dictionaries(st.sampled_from([*BOUNDS]), st.integers(1, 4))
lookups = st.builds(Lookup, keys, st.lists(keys, max_size=3), befores, befores, limits, st.none() | keys)
operations = st.one_of(
    st.tuples(st.just("append"), st.lists(events, max_size=8)),
    st.tuples(st.just("fetch"), st.lists(lookups, max_size=3)),
    st.tuples(st.just("put_users"), features),
    st.tuples(st.just("put_items"), features),
    st.tuples(st.just("mark"), keys, keys, st.booleans()),
    st.tuples(st.just("marked"), keys),
    st.tuples(st.just("users_of"), st.lists(keys, max_size=3)),
)


@settings(max_examples=60)
@given(steps=st.lists(operations, max_size=15))
def test_any_sequence_of_operations_is_answered_as_the_promise_says(stores, steps):
    store, plain = stores(), PlainStore()
    everything = [Lookup(key, ["a", "b"], EVERYTHING) for key in ("a", "b", "é", "a\x00")]
    for name, *given_ in [*steps, ("fetch", everything)]:
        options = {"anew": given_.pop()} if name == "mark" else {}
        assert getattr(store, name)(*given_, **options) == getattr(plain, name)(*given_, **options)
    store.close()
