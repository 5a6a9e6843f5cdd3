import json
import random
import time

import pytest

from infnet.errors import DataError
from infnet.serving import store_feeder as module
from infnet.serving.events import Event
from infnet.serving.store_feeder import StoreFeeder, history_events
from service_parts import Parts, count, holder_of, replaced, wait_until

AT = 2_000_000_000_000
"""After everything in the bundle."""
TICK_S = 0.01


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(module, "_EVERY_S", TICK_S)


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path, fills=False) as parts:
        yield parts


def an_event(number=0, **changes):
    given = {"request_id": "r", "item_id": str(number), "type": "click", "time_ms": AT + number, "user_id": "new"}
    return Event(event_id=f"e{number}", received_ms=0, **(given | changes))


def happened(parts, *events):
    """What ingest does with events."""
    parts.log.append_events(events)
    parts.feeder.feed(events, parts.holder.live)


def in_bundle(bundle, user, behaviour="click"):
    index = [b.name for b in bundle.layout.behaviours].index(behaviour)
    history, at = bundle.histories[index], int(bundle.users.find([user])[0])
    own = slice(history.starts[at], history.starts[at + 1])
    return [*zip(bundle.items.keys(history.items[own]), history.times[own].tolist(), strict=True)][::-1]


def newest_first(*numbers):
    return [(str(number), AT + number) for number in sorted(numbers, reverse=True)]


def is_well(parts):
    return not parts.feeder.is_behind and count(parts.metrics, "infnet_feature_store_behind") == 0


def test_a_new_store_is_filled_from_the_bundle_and_then_fed(parts, bundle):
    parts.feed()
    assert parts.fills == 1
    happened(parts, an_event(1, user_id="u1"), an_event(2, user_id="u2", type="like"))
    assert parts.history("u1") == [*newest_first(1), *in_bundle(bundle, "u1")]
    assert parts.history("u2", "like") == [*newest_first(2), *in_bundle(bundle, "u2", "like")]
    assert parts.history("u2") == in_bundle(bundle, "u2")
    assert len(in_bundle(bundle, "u1")) > 1


def test_what_is_fed_is_in_the_history_at_once(parts):
    parts.feed()
    for number in range(20):
        happened(parts, an_event(number))
        assert parts.history("new") == newest_first(*range(number + 1))


def test_events_wait_in_the_log_while_the_store_fails_and_enter_in_the_order_of_their_times(parts):
    parts.feed()
    happened(parts, an_event(3))
    parts.store.is_down = True
    happened(parts, an_event(9), an_event(1))
    happened(parts, an_event(5))
    assert parts.feeder.is_behind
    wait_until(lambda: count(parts.metrics, "infnet_feature_store_behind") == 1)
    assert parts.history("new") == newest_first(3)
    parts.store.is_down = False
    wait_until(lambda: is_well(parts))
    assert parts.history("new") == newest_first(9, 5, 3, 1)
    happened(parts, an_event(4))
    assert parts.history("new") == newest_first(9, 5, 4, 3, 1)
    assert parts.fills == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_fails_now_and_then_has_what_one_has_that_never_fails(parts, seed):
    rng = random.Random(seed)
    parts.feed()
    numbers = rng.sample(range(1000), 80)
    for number in numbers:
        parts.store.is_down = rng.random() < 0.3
        parts.store.breaks[rng.choice(["mark", "marked"])] += rng.random() < 0.2
        happened(parts, an_event(number))
        if rng.random() < 0.1:
            time.sleep(2 * TICK_S)
    parts.store.is_down = False
    parts.store.breaks.clear()
    wait_until(lambda: is_well(parts))
    assert parts.history("new") == newest_first(*numbers)[: parts.store.bound("click")]


def test_a_process_that_ends_while_the_store_fails_leaves_its_events_to_the_next(parts, bundle, tmp_path):
    parts.feed()
    happened(parts, an_event(1))
    time.sleep(2 * TICK_S)
    parts.store.is_down = True
    happened(parts, an_event(2), an_event(3))
    parts.close()
    with Parts(bundle, tmp_path, fills=False) as next_life:
        assert next_life.feeder.is_behind
        next_life.feed()
        assert next_life.history("new") == newest_first(3, 2, 1)
        assert next_life.fills == 0
        happened(next_life, an_event(4))
        assert next_life.history("new") == newest_first(4, 3, 2, 1)


def test_what_the_store_had_when_a_process_ended_is_not_put_there_again(parts, bundle, tmp_path):
    parts.feed()
    happened(parts, *map(an_event, range(5)))
    parts.close()
    with Parts(bundle, tmp_path, fills=False) as next_life:
        next_life.feed()
        assert next_life.store.calls["append"] == 0
        assert next_life.history("new") == newest_first(*range(5))


def test_events_of_another_writers_log_are_its_own_affair(parts, bundle, tmp_path):
    parts.feed()
    happened(parts, an_event(1))
    parts.close()
    with Parts(bundle, tmp_path, fills=False, writer="other") as other:
        other.feed()
        happened(other, an_event(2))
        assert other.history("new") == newest_first(2, 1)
        assert other.store.calls["append"] == 1


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_store_that_lost_everything_is_filled_again_from_bundle_and_log(parts, bundle, fails_first):
    parts.feed()
    happened(parts, an_event(2, user_id="u1"), an_event(1))
    before = parts.history("u1")
    if fails_first:
        parts.store.is_down = True
        happened(parts, an_event(3))
    parts.lose_store()
    parts.store.is_down = False
    wait_until(lambda: parts.fills == 2 and is_well(parts))
    assert parts.history("u1") == before == [*newest_first(2), *in_bundle(bundle, "u1")]
    assert parts.history("new") == newest_first(*((3, 1) if fails_first else (1,)))


@pytest.mark.parametrize("behind", [False, True])
def test_a_store_that_loses_everything_just_before_it_is_marked_is_filled_again(parts, behind):
    parts.feed()
    lost = []

    def before(name, *_):
        if name == "mark" and not lost:
            lost.append(parts.lose_store())

    parts.store.is_down = behind
    happened(parts, an_event(1))
    parts.store.before, parts.store.is_down = before, False
    if not behind:
        happened(parts, an_event(2))
    wait_until(lambda: lost and parts.fills == 2 and is_well(parts))
    assert parts.history("new") == newest_first(*((1,) if behind else (2, 1)))


def test_an_event_that_bundle_and_log_both_hold_is_one_when_a_lost_store_is_filled(parts, bundle):
    """As after an update, whose bundle has the events that the log told of."""
    (item, at), *_ = in_bundle(bundle, "u1")
    parts.log.append_events([an_event(1, user_id="u1", item_id=item, time_ms=at)])
    parts.feed()
    assert parts.history("u1") == in_bundle(bundle, "u1")


def test_an_event_between_log_and_store_is_not_taken_for_one_that_the_store_has(parts):
    parts.feed()
    event = an_event(1)
    parts.log.append_events([event])
    time.sleep(10 * TICK_S)  # the feeder notes how far the store has come
    parts.store.breaks["append"] = 1
    parts.feeder.feed([event], parts.holder.live)
    wait_until(lambda: is_well(parts))
    assert parts.history("new") == newest_first(1)


def test_an_event_that_comes_twice_is_one(parts):
    parts.feed()
    events = [*map(an_event, range(4))]
    happened(parts, *events)
    happened(parts, *events[::-1])
    parts.store.breaks["append"] = 1
    happened(parts, *events)
    wait_until(lambda: is_well(parts))
    assert parts.history("new") == newest_first(*range(4))


def test_a_store_that_is_down_from_the_beginning_is_filled_when_it_comes(parts, bundle):
    parts.store.is_down = True
    parts.feeder.start()
    happened(parts, an_event(1, user_id="u1"))
    time.sleep(3 * TICK_S)
    assert parts.feeder.is_behind
    parts.store.is_down = False
    wait_until(lambda: is_well(parts))
    assert parts.history("u1") == [*newest_first(1), *in_bundle(bundle, "u1")]


def test_filling_that_fails_is_tried_again(parts, bundle):
    attempts = []

    def fill():
        attempts.append(1)
        if len(attempts) < 3:
            raise DataError("a bundle that cannot be read")

    feeder = StoreFeeder(parts.log, parts.store, parts.holder, parts.metrics, fill, parts.billing)
    feeder.start()
    wait_until(lambda: not feeder.is_behind)
    assert len(attempts) == 3
    feeder.close()


def test_how_far_the_store_has_come_is_kept_in_the_store(parts):
    parts.feed()
    happened(parts, *map(an_event, range(3)))
    wait_until(lambda: json.loads(parts.store.behind.marked("applied/w")) == parts.log.position())


def test_an_event_enters_the_history_of_every_behaviour_of_its_type(bundle):
    spec = holder_of(bundle).live.spec
    behaviours = tuple(b.model_copy(update={"event": "tap"}) for b in spec.behaviours)
    live = replaced(holder_of(bundle), spec=spec.model_copy(update={"behaviours": behaviours})).live
    found = history_events([an_event(1, type="tap"), an_event(2, type="click")], live)
    assert [(event.behaviour, event.item) for event in found] == [("click", "1"), ("like", "1")]


def test_what_did_not_happen_and_whose_it_was_not_enters_no_history(bundle):
    live = holder_of(bundle).live
    events = [
        an_event(1, value=0.0),
        an_event(2, value=-1.0),
        an_event(3, value=float("nan")),
        an_event(4, user_id=None),
        an_event(5, type="impression"),
        an_event(6, type="watch", value=9.0),
        an_event(7, value=0.5),
    ]
    assert [event.item for event in history_events(events, live)] == ["7"]


def test_an_event_has_the_same_place_among_those_of_its_time_whoever_asks(bundle):
    live = holder_of(bundle).live
    events = [an_event(number, time_ms=AT) for number in range(50)]
    found = {event.item: event.order for event in history_events(events, live)}
    again = {event.item: event.order for event in history_events(events[::-1], live)}
    assert found == again
    assert len({*found.values()}) == 50
    assert all(0 <= order < 2**63 for order in found.values())
