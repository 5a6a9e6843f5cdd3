import pytest

from infnet.serving import features as module
from infnet.serving.feature_store.base import History, HistoryEvent
from infnet.serving.features import FeatureService, Recent, Wanted
from service_parts import Parts, holder_of, replaced, running

NOW = 2**50


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path, fills=False) as parts:
        yield parts


@pytest.fixture
def model(bundle):
    return holder_of(bundle).live


def wanted(user="u1", items=("1",), now=NOW, request_id="r"):
    return Wanted(request_id, user, list(items), now)


def clicks(known):
    return [*zip(*known.user.histories["click"], strict=True)]


def click(item, time_ms, user="u1"):
    return HistoryEvent(user, "click", item, time_ms, 0)


def test_the_entries_set_latest_are_held():
    recent = Recent(3)
    for key in "abc":
        recent.put(key, key.upper())
    recent.put("a", "again")
    recent.put("d", "D")
    assert [recent.get(key) for key in "abcd"] == ["again", None, "C", "D"]
    assert [key in recent for key in "abcd"] == [True, False, True, True]
    assert len(recent) == 3


def test_threads_that_put_at_the_same_time_stay_within_the_limit():
    recent = Recent(50)

    def put(worker):
        for number in range(2000):
            recent.put((worker, number % 70), number)
            recent.get((worker, number % 70))

    with running(*(lambda worker=worker: put(worker) for worker in range(4))):
        pass
    assert len(recent) == 50


def test_several_requests_are_answered_in_their_order_by_one_round_trip(parts, model):
    parts.store.append([click(f"{user}{at}", at, f"u{user}") for user in range(4) for at in range(user)])
    parts.store.put_users({"u1": {"years": 30}})
    parts.store.put_items({"2": {"bid": 4.5}})
    before = parts.store.calls["fetch"]
    found = parts.features.fetch(model, [wanted(f"u{user}", ["1", "2"]) for user in (3, 1, 0)])
    assert parts.store.calls["fetch"] == before + 1
    assert [known.user.histories["click"].items for known in found] == [["32", "31", "30"], ["10"], []]
    assert [known.user.values for known in found] == [None, {"years": 30}, None]
    assert [known.items for known in found] == [[None, {"bid": 4.5}]] * 3
    assert not any(known.is_last_known for known in found)


def test_no_more_is_read_of_a_history_than_the_model_reads(parts, model):
    parts.store.append([click(str(at), at) for at in range(9)])
    (known,) = parts.features.fetch(model, [wanted()])
    assert known.user.histories["click"] == History(["8", "7", "6", "5"], [8, 7, 6, 5])
    assert known.user.histories["like"] == History([], [])


def test_an_event_is_seen_once_its_delay_has_passed(parts, bundle):
    spec = holder_of(bundle).live.spec
    behaviours = tuple(b.model_copy(update={"delay_s": 60.0 if b.name == "click" else 0.0}) for b in spec.behaviours)
    delayed = replaced(holder_of(bundle), spec=spec.model_copy(update={"behaviours": behaviours})).live
    parts.store.append([click("1", NOW), HistoryEvent("u1", "like", "2", NOW, 0)])

    def seen(now):
        (known,) = parts.features.fetch(delayed, [wanted(now=now)])
        return [bool(known.user.histories[name].items) for name in ("click", "like")]

    assert [seen(NOW + after) for after in (0, 1, 60_000, 60_001)] == [
        [False, False],
        [False, True],
        [False, True],
        [True, True],
    ]


def test_whose_request_it_was_is_told_to_the_store(parts, model):
    parts.features.fetch(model, [wanted("ada", request_id="ra"), wanted("bob", request_id="rb")])
    assert parts.store.users_of(["rb", "ra"]) == ["bob", "ada"]


def test_when_the_store_fails_users_and_items_are_as_they_were_last_known(parts, model):
    parts.store.append([click("1", 10)])
    parts.store.put_items({"2": {"bid": 4.5}})
    parts.features.fetch(model, [wanted(items=["1", "2"])])
    parts.store.append([click("3", 20)])
    parts.features.fetch(model, [wanted(items=["1"])])
    parts.store.is_down = True
    ada, stranger = parts.features.fetch(model, [wanted(items=["2", "1"]), wanted("stranger", ["2"])])
    assert ada.is_last_known
    assert clicks(ada) == [("3", 20), ("1", 10)]
    assert ada.items == [{"bid": 4.5}, None]
    assert stranger.is_last_known
    assert stranger.user is None  # as in the bundle
    assert stranger.items == [{"bid": 4.5}]


def test_no_more_users_are_remembered_than_asked_for(parts, model):
    features = FeatureService(parts.store, remember=2)
    features.fetch(model, [wanted(user) for user in ("a", "b", "c")])
    known = features.fetch(model, [wanted(user) for user in ("a", "b", "c")], may_ask=False)
    assert [each.user is not None for each in known] == [False, True, True]


def test_without_time_to_ask_nobody_is_asked(parts, model):
    parts.store.append([click("1", 10)])
    before = parts.store.calls["fetch"]
    (known,) = parts.features.fetch(model, [wanted()], may_ask=False)
    assert parts.store.calls["fetch"] == before
    assert known.is_last_known
    assert parts.features.is_available  # that nobody asked says nothing of the store
    (known,) = parts.features.fetch(model, [wanted()])
    assert not known.is_last_known


def test_a_store_that_failed_is_left_alone_for_a_while_that_grows_up_to_a_second(parts, model, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    parts.store.is_down = True
    pauses, asked_at = [], None
    while len(pauses) < 9:
        before = parts.store.calls["fetch"]
        (known,) = parts.features.fetch(model, [wanted()])
        assert known.is_last_known
        if parts.store.calls["fetch"] > before:
            pauses += [] if asked_at is None else [clock[0] - asked_at]
            asked_at = clock[0]
        clock[0] += 0.01
    assert pauses == sorted(pauses)
    assert 0.02 < pauses[0] < 0.1
    assert max(pauses) == pytest.approx(1.0, abs=0.02)
    assert not parts.features.is_available

    parts.store.is_down = False
    clock[0] += 1.0
    (known,) = parts.features.fetch(model, [wanted()])
    assert not known.is_last_known
    assert parts.features.is_available
    parts.store.is_down = True  # and again: the first pause is as short as ever
    parts.features.fetch(model, [wanted()])
    clock[0] += 0.1
    before = parts.store.calls["fetch"]
    parts.features.fetch(model, [wanted()])
    assert parts.store.calls["fetch"] == before + 1
