import asyncio
import copy
import dataclasses
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from infnet.errors import InfnetError, StoreError
from infnet.serving import batcher as batcher_module
from infnet.serving.arms import Arm, Arms
from infnet.serving.batcher import Batcher
from infnet.serving.settings import ServeSettings
from infnet.serving.system import System
from infnet.serving.wire import RankReply
from service_parts import SECRET, Parts, count, holder_of, replaced, running, wait_until

pytestmark = pytest.mark.usefixtures("without_pauses")

SLACK_S = 0.15
"""What a busy machine may add."""


class Watched:
    """A ranking service that notes what it is asked together, and waits at a gate."""

    def __init__(self, service):
        self._service, self.batches, self.gate = service, [], threading.Event()
        self.gate.set()

    def __getattr__(self, name):
        return getattr(self._service, name)

    def answer(self, tickets):
        self.batches.append([ticket.request_id for ticket in tickets])
        self.gate.wait(10)
        return self._service.answer(tickets)


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path) as parts:
        yield parts


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def start(parts, loop):
    """Starts batchers, which are ended before the event loop is."""
    started = []

    def start(service=None, **options):
        watched = Watched(service or parts.service)
        batcher = Batcher(watched, **options)
        started.append((watched, batcher))
        return watched, batcher

    yield start
    for watched, batcher in started:
        watched.gate.set()
        batcher.close()


@pytest.fixture
def ask(loop):
    """Hands tickets over in their order; gives what is going to be their outcomes."""

    def ask(batcher, *tickets):
        return [asyncio.run_coroutine_threadsafe(batcher.answer(ticket), loop) for ticket in tickets]

    return ask


@pytest.fixture
def busy(parts, start, ask):
    """A batcher whose only worker is held at the gate, so that everything else waits."""

    def busy(**options):
        watched, batcher = start(workers=1, **options)
        watched.gate.clear()
        (first,) = ask(batcher, parts.ticket(request_id="first"))
        wait_until(lambda: watched.batches == [["first"]])
        return watched, batcher, first

    return busy


def outcomes(futures):
    return [future.result(20) for future in futures]


def waits(batcher, num):
    wait_until(lambda: batcher.num_waiting == num)


def scores(reply):
    return {item.item_id: [*item.tasks.values()] for item in reply.items}


def slow_model(bundle, pause):
    """A holder of a model that takes a pause before it scores."""
    holder = replaced(holder_of(bundle))
    ranker = copy.copy(holder.live.ranker)

    def score_encoded(requests):
        pause()
        return holder_of(bundle).live.ranker.score_encoded(requests)

    ranker.score_encoded = score_encoded
    holder.live = dataclasses.replace(holder.live, ranker=ranker)
    return holder


def test_many_at_once_get_each_their_own_answer_the_one_they_get_alone(parts, start, ask):
    rng = np.random.default_rng(0)
    sizes = [1, 3, 64, 65, 0, 30, 100, 7] * 8
    tickets = [parts.ticket(f"u{i % 14}", rng.integers(1, 300, size).tolist()) for i, size in enumerate(sizes)]
    watched, batcher = start(workers=3)
    found = outcomes(ask(batcher, *tickets))
    assert max(map(len, watched.batches)) > 1
    for ticket, reply in zip(tickets, found, strict=True):
        (alone,) = parts.service.answer([ticket])
        assert reply.request_id == ticket.request_id
        assert reply.degraded == []
        mine, plain = scores(reply), scores(alone)
        assert mine.keys() == plain.keys() == set(ticket.items)
        for item in mine:
            assert mine[item] == pytest.approx(plain[item], rel=1e-5, abs=1e-7)


def test_tickets_are_taken_in_the_order_they_came_small_ones_that_wait_together(parts, busy, ask):
    watched, batcher, first = busy()
    sizes = {"a": 64, "b": 1, "c": 65, "d": 3, "e": 0, "f": 64, "g": 500, "h": 65, "i": 2}
    tickets = [parts.ticket("u1", range(size), request_id=name) for name, size in sizes.items()]
    futures = ask(batcher, *tickets)
    waits(batcher, len(sizes))
    watched.gate.set()
    assert [reply.request_id for reply in outcomes([first, *futures])] == ["first", *sizes]
    assert watched.batches == [["first"], ["a", "b"], ["c"], ["d", "e", "f"], ["g"], ["h"], ["i"]]


@pytest.mark.parametrize(("num", "size", "most"), [(70, 1, 32), (20, 64, 8), (30, 40, 12)])
def test_no_more_are_computed_together_than_is_good_for_them(parts, busy, ask, num, size, most):
    watched, batcher, first = busy()
    futures = ask(batcher, *(parts.ticket("u1", range(size)) for _ in range(num)))
    waits(batcher, num)
    watched.gate.set()
    outcomes([first, *futures])
    together = [len(batch) for batch in watched.batches[1:]]
    assert max(together) == together[0] == most
    assert sum(together) == num


def test_no_more_are_computed_together_than_asked_for(parts, busy, ask):
    watched, batcher, first = busy(most=5)
    futures = ask(batcher, *(parts.ticket() for _ in range(12)))
    waits(batcher, 12)
    watched.gate.set()
    outcomes([first, *futures])
    assert [len(batch) for batch in watched.batches[1:]] == [5, 5, 2]


def test_a_small_one_waits_for_others_as_long_as_it_is_told_to_and_a_large_one_does_not(parts, start, ask):
    watched, batcher = start(workers=1, wait_s=0.6)
    began = time.perf_counter()
    (first,) = ask(batcher, parts.ticket(request_id="a"))
    time.sleep(0.03)
    (second,) = ask(batcher, parts.ticket(request_id="b"))
    outcomes([first, second])
    assert watched.batches == [["a", "b"]]
    assert 0.5 < time.perf_counter() - began < 0.6 + 2 * SLACK_S
    began = time.perf_counter()
    outcomes(ask(batcher, parts.ticket("u1", range(65))))
    assert time.perf_counter() - began < 0.5


def test_nothing_waits_for_others_unless_told_to(parts, start, ask):
    watched, batcher = start(workers=1)
    for name in "abc":
        outcomes(ask(batcher, parts.ticket(request_id=name)))
    assert watched.batches == [["a"], ["b"], ["c"]]


def test_the_deadline_is_kept_whatever_takes_too_long(parts, busy, ask):
    _, batcher, first = busy()
    began = time.perf_counter()
    (future,) = ask(batcher, parts.ticket("u1", [3, 1, 2], deadline_ms=100))
    reply = future.result(5)
    assert 0.05 < time.perf_counter() - began < 0.1 + SLACK_S
    assert reply.degraded == ["popularity_order"]
    assert {item.item_id for item in reply.items} == {"1", "2", "3"}
    assert not first.done()


def test_a_ticket_whose_time_ran_out_while_it_waited_is_not_worked_on(parts, busy, ask):
    watched, batcher, first = busy()
    times = {"a": 30, "b": 30, "c": None, "d": 30, "e": None}
    a, b, c, d, e = ask(batcher, *(parts.ticket(request_id=name, deadline_ms=ms) for name, ms in times.items()))
    outcomes([a, b, d])
    watched.gate.set()
    outcomes([first, c, e])
    assert [name for batch in watched.batches for name in batch] == ["first", "c", "e"]
    assert [served["request_id"] for served in parts.served() if served["items"]] == ["first", "c", "e"]


@pytest.mark.parametrize("what", ["store", "model"])
def test_a_ticket_whose_time_ran_out_is_answered_once_in_time_and_logged_as_such(bundle, tmp_path, loop, ask, what):
    holder = slow_model(bundle, lambda: time.sleep(0.3)) if what == "model" else holder_of(bundle)
    with Parts(bundle, tmp_path, holder=holder, deadline_s=0.1) as parts:
        parts.store.delay_s = 0.3 if what == "store" else 0.0
        with closing(Batcher(parts.service)) as batcher:
            began = time.perf_counter()
            found = outcomes(ask(batcher, *(parts.ticket(request_id=name) for name in "abcd")))
            assert time.perf_counter() - began < 0.1 + SLACK_S
            assert [reply.degraded for reply in found] == [["popularity_order"]] * 4
            wait_until(lambda: len(parts.served()) == 4)
        lines = parts.served()
        assert {line["request_id"] for line in lines} == set("abcd")
        assert all(line["items"] == [] and line["degraded"] == ["popularity_order"] for line in lines)


def test_a_store_that_stays_slow_is_left_out_after_a_while_and_the_model_answers_again(bundle, tmp_path, loop, ask):
    with Parts(bundle, tmp_path, deadline_s=0.05) as parts:
        parts.store.delay_s = 0.08
        with closing(Batcher(parts.service)) as batcher:
            seen = []
            while seen[-1:] != [["last_known_features"]] and len(seen) < 80:
                began = time.perf_counter()
                (reply,) = outcomes(ask(batcher, parts.ticket("u1", [1, 2, 3])))
                assert time.perf_counter() - began < 0.05 + SLACK_S
                seen.append(reply.degraded)
            assert seen[-1] == ["last_known_features"]
            assert all("popularity_order" in each for each in seen[:-1])


def test_who_asks_for_less_time_than_it_takes_to_notice_still_gets_what_fits(parts, start, ask, monkeypatch):
    monkeypatch.setattr(batcher_module, "_MARGIN_S", 1.0)
    _, batcher = start()
    (reply,) = outcomes(ask(batcher, parts.ticket("u1", [1], deadline_ms=1000)))
    assert reply.degraded == []


def test_the_log_does_not_say_that_something_was_answered_when_something_else_was(bundle, tmp_path, loop, ask):
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:
        parts.log.before = lambda name, *_: time.sleep(0.2) if name == "append_served" else None
        with closing(Batcher(parts.service)) as batcher:
            (reply,) = outcomes(ask(batcher, parts.ticket("u1", [1, 2, 3])))
        logged = [served["scores"] for served in parts.served() if served["items"]]
        assert logged in ([], [[item.score for item in reply.items]])


def test_an_order_by_popularity_of_all_candidates_is_not_declared_as_capped(bundle, tmp_path, loop, ask):
    with Parts(bundle, tmp_path, holder=slow_model(bundle, lambda: time.sleep(0.2)), deadline_s=0.1) as parts:
        for _ in range(400):
            parts.service.costs.scored(0.101, 100)
        with closing(Batcher(parts.service)) as batcher:
            (reply,) = outcomes(ask(batcher, parts.ticket("u1", range(200))))
        assert len(reply.items) == 200
        assert reply.degraded == ["popularity_order"]


def test_an_answer_out_of_time_can_be_counted_while_its_ticket_is_still_worked_on(bundle, tmp_path, loop, ask):
    goes_on = threading.Event()
    with Parts(bundle, tmp_path, holder=slow_model(bundle, lambda: goes_on.wait(5))) as parts:
        settings = ServeSettings(model=bundle.path, state=tmp_path, events=tmp_path, deadline_ms=100, threads=1)
        system = System(settings, Arms(Arm(parts.holder, None)), parts.store, parts.log)
        ticket = system.service.admit(parts.ticket().body, time.perf_counter())
        (reply,) = outcomes(ask(system.batcher, ticket))
        assert reply.degraded == ["popularity_order"]
        times = system.metrics.stage_seconds

        class Interrupted:
            """Where another thread takes over."""

            def labels(self, stage):
                goes_on.set()
                wait_until(lambda: "reply" in ticket.seconds)
                return times.labels(stage)

        system.metrics.stage_seconds = Interrupted()
        try:
            system.answered(ticket, reply)
        finally:
            goes_on.set()
            system.batcher.close()


def test_there_is_room_while_the_queue_is_not_full(parts, busy, ask):
    watched, batcher, first = busy(queue=3)
    assert batcher.has_room(5.0)
    assert batcher.has_room(5.0, 3)
    assert not batcher.has_room(5.0, 4)
    futures = ask(batcher, *(parts.ticket() for _ in range(2)))
    waits(batcher, 2)
    assert batcher.has_room(5.0)
    assert not batcher.has_room(5.0, 2)
    futures += ask(batcher, parts.ticket())
    waits(batcher, 3)
    assert not batcher.has_room(5.0)
    watched.gate.set()
    assert all(isinstance(outcome, RankReply) for outcome in outcomes([first, *futures]))
    waits(batcher, 0)
    assert batcher.has_room(5.0)


def test_there_is_no_room_for_who_would_wait_for_half_of_its_time(parts, busy, ask):
    watched, batcher, first = busy()
    for _ in range(400):
        parts.service.costs.served(0.02)
    futures = ask(batcher, *(parts.ticket() for _ in range(3)))
    waits(batcher, 3)
    assert not batcher.has_room(0.1)  # 60 ms of 100
    assert batcher.has_room(0.13)
    watched.gate.set()
    outcomes([first, *futures])


def test_who_was_given_up_takes_room_in_the_queue_and_no_time(parts, busy, ask):
    watched, batcher, first = busy(queue=4)
    for _ in range(400):
        parts.service.costs.served(0.05)
    futures = ask(batcher, *(parts.ticket(deadline_ms=20) for _ in range(3)))
    assert all(outcome.degraded == ["popularity_order"] for outcome in outcomes(futures))
    waits(batcher, 0)
    assert batcher.has_room(0.1)
    assert not batcher.has_room(0.1, 2)
    watched.gate.set()
    outcomes([first])


def test_a_service_that_was_slow_and_refused_everybody_finds_out_that_it_is_no_longer(parts, start):
    _, batcher = start(workers=1)
    for _ in range(400):
        parts.service.costs.served(0.2)
    refused = 0
    while not batcher.has_room(0.1, 2):
        refused += 1
        assert refused < 500
    assert refused > 10


def test_a_batch_larger_than_the_queue_says_nothing_of_how_fast_requests_are(parts, start):
    _, batcher = start(queue=256)
    before = parts.service.costs.service_s
    assert not any(batcher.has_room(0.1, 300) for _ in range(200))
    assert parts.service.costs.service_s == before


def test_a_failure_nobody_foresaw_is_an_outcome_and_the_threads_work_on(parts, start, ask):
    _, batcher = start(workers=1)
    parts.store.before = lambda *_: (_ for _ in ()).throw(ValueError(SECRET))
    (outcome,) = outcomes(ask(batcher, parts.ticket()))
    assert isinstance(outcome, InfnetError)
    assert SECRET not in str(outcome)
    parts.store.before = lambda *_: None
    assert batcher.is_alive
    (outcome,) = outcomes(ask(batcher, parts.ticket()))
    assert isinstance(outcome, RankReply)


def test_ending_answers_what_waits_and_takes_nothing_more(parts, busy, ask):
    watched, batcher, first = busy()
    futures = ask(batcher, *(parts.ticket(request_id=name) for name in "abcdef"))
    waits(batcher, 6)
    with running(batcher.close):
        time.sleep(0.02)
        (late,) = ask(batcher, parts.ticket(request_id="late"))
        with pytest.raises(StoreError, match="shutting down"):
            late.result(5)
        watched.gate.set()
    assert not batcher.is_alive
    found = outcomes([first, *futures])
    assert [reply.degraded for reply in found] == [[]] * 7
    assert [served["request_id"] for served in parts.served()] == ["first", *"abcdef"]
    batcher.close()  # again is nothing


def test_a_small_one_that_waits_for_others_does_not_delay_the_end(parts, start, ask):
    _, batcher = start(workers=1, wait_s=5.0)
    (future,) = ask(batcher, parts.ticket())
    time.sleep(0.02)
    began = time.perf_counter()
    batcher.close()
    assert time.perf_counter() - began < 1
    assert future.result(5).degraded == []


def test_how_many_are_computed_together_is_counted(parts, busy, ask):
    watched, batcher, first = busy()
    futures = ask(batcher, *(parts.ticket() for _ in range(5)))
    waits(batcher, 5)
    watched.gate.set()
    outcomes([first, *futures])
    assert count(parts.metrics, "infnet_batch_requests_sum") == 6
    assert count(parts.metrics, "infnet_batch_requests_count") == 2
