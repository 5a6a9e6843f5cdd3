import copy
import dataclasses
import math
import time

import numpy as np
import pytest

from infnet.errors import DataError, SpecError
from infnet.serving import store_feeder
from infnet.serving.encoding import UserState
from infnet.serving.live import LiveModel
from infnet.serving.ranker import Ranker
from infnet.serving.wire import RankReply
from service_parts import Parts, altered, count, holder_of, replaced
from small_bundle import NEWCOMER, NUM_ITEMS

ALL = [*range(1, NUM_ITEMS + 1)]
MANY = [*ALL, *(f"unknown{i}" for i in range(160))]
FIELDS = {
    "context": {"tab": "t2", "temperature": 21.5},
    "item_ids": [7, "nothing", 3, 12, 40],
    "item_features": {
        "bid": [0.5, None, 3, 1e-9, 2],
        "rank": [1, 2, None, 40, 5],
        "reasons": ["new", ["near"], *"abc"],
    },
}


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path) as parts:
        yield parts


@pytest.fixture(scope="module")
def ranker(bundle):
    return Ranker(bundle)


def scores(reply, items):
    """What was predicted (N, T), in the order of some items."""
    tasks = {item.item_id: [*item.tasks.values()] for item in reply.items}
    return np.array([tasks[str(item)] for item in items])


def assert_scores(reply, wanted, items):
    """That an order is the one of these scores (N, T), best first by the first task."""
    assert len(reply.items) == len(items)
    np.testing.assert_allclose(scores(reply, items), wanted, rtol=1e-5, atol=1e-7)
    assert [item.score for item in reply.items] == sorted((item.score for item in reply.items), reverse=True)
    assert all(item.score == item.tasks["click"] for item in reply.items)


def after(state, encoder, behaviour, *events):
    """A user to whom more happened, the latest first."""
    found = encoder.describe(None, {}, {behaviour: events})
    place = ["click", "like"].index(behaviour)
    histories, times = [*state.histories], [*state.times]
    histories[place] = np.concatenate([found.histories[place], state.histories[place]])
    times[place] = np.concatenate([found.times[place], state.times[place]])
    return UserState(state.values, tuple(histories), tuple(times))


def popular(bundle, items):
    """Items by prior score, equal ones as they came."""
    prior = bundle.prior[bundle.items.find([str(item) for item in items])]
    return [str(items[place]) for place in np.argsort(-prior, kind="stable")]


def learn(parts, *, store_s=0.001, pass_s=0.001, candidate_s=1e-5):
    """What the service has seen lately of its parts."""
    for _ in range(400):
        parts.service.costs.fetched(store_s)
        parts.service.costs.scored(pass_s, 1)
    for _ in range(400):
        parts.service.costs.scored(pass_s + 100 * candidate_s, 100)


@pytest.mark.parametrize("user", ["u1", "u5", NEWCOMER, "nobody", 123])
def test_scores_are_those_of_the_ranker_on_the_same_state(parts, ranker, user):
    ticket = parts.ticket(user, FIELDS["item_ids"], context=FIELDS["context"], item_features=FIELDS["item_features"])
    (reply,) = parts.service.answer([ticket])
    wanted = ranker.score(
        str(user),
        FIELDS["item_ids"],
        context=FIELDS["context"],
        candidate_values=FIELDS["item_features"],
        time_ms=ticket.time_ms,
    )
    assert_scores(reply, wanted, FIELDS["item_ids"])
    assert reply.degraded == []
    assert reply.model_version == parts.bundle.manifest.version
    assert abs(ticket.time_ms - time.time() * 1000) < 60_000


def test_a_click_is_in_the_history_of_the_very_next_request(parts, ranker, monkeypatch):
    monkeypatch.setattr(store_feeder, "_EVERY_S", 0.01)
    parts.feed()
    state, clicked = ranker.encoder.snapshot("u2"), []
    for item in (31, 5, 17):
        reply = parts.answer("u2", ALL)
        parts.tell({"request_id": reply.request_id, "item_id": item})
        clicked.insert(0, (item, parts.events()[-1]["time_ms"]))
        while time.time_ns() // 1_000_000 <= clicked[0][1]:
            pass  # a history is what was strictly before
        ticket = parts.ticket("u2", ALL)
        (reply,) = parts.service.answer([ticket])
        wanted = ranker.score(after(state, ranker.encoder, "click", *clicked), ALL, time_ms=ticket.time_ms)
        assert_scores(reply, wanted, ALL)
        served = parts.served()[-1]["histories"]["click"]
        assert served["items"][: len(clicked)] == [str(item) for item, _ in clicked]


def test_requests_answered_together_get_the_answers_they_get_alone(parts):
    rng = np.random.default_rng(0)
    tickets = [
        parts.ticket(f"u{rng.integers(0, 14)}", rng.choice(MANY, rng.integers(0, 30), replace=False).tolist())
        for _ in range(25)
    ]
    together = parts.service.answer(tickets)
    alone = [parts.service.answer([ticket])[0] for ticket in tickets]
    assert [reply.request_id for reply in together] == [ticket.request_id for ticket in tickets]
    for ticket, one, other in zip(tickets, together, alone, strict=True):
        assert len(one.items) == len(ticket.items)
        if ticket.items:
            np.testing.assert_allclose(scores(one, ticket.items), scores(other, ticket.items), rtol=1e-5, atol=1e-7)


def test_one_that_cannot_be_read_does_not_hurt_those_computed_with_it(parts):
    good, wrong = parts.ticket("u1", [1, 2]), parts.ticket("u1", [1], context={"tabb": 1})
    alone = parts.service.answer([good])[0]
    first, second, third = parts.service.answer([good, wrong, good])
    assert isinstance(second, DataError)
    assert "did you mean 'tab'" in str(second)
    for reply in (first, third):
        np.testing.assert_allclose(scores(reply, [1, 2]), scores(alone, [1, 2]), rtol=1e-5)
    assert len(parts.served()) == 3


def test_the_score_is_what_the_request_or_else_the_service_asks_for(bundle, tmp_path):
    with Parts(bundle, tmp_path, by="watch") as parts:
        for asked, task in (({}, "watch"), ({"by": "like"}, "like"), ({"by": "click"}, "click")):
            reply = parts.answer("u1", ALL, **asked)
            found = [item.score for item in reply.items]
            assert found == [item.tasks[task] for item in reply.items] == sorted(found, reverse=True)
        with pytest.raises(SpecError, match="no task is called 'clik'; did you mean 'click'"):
            parts.ticket(by="clik")


def test_a_task_that_the_model_does_not_have_is_told_at_the_start(bundle, tmp_path):
    with pytest.raises(SpecError, match="did you mean 'watch'"):
        Parts(bundle, tmp_path, by="watchh")


def test_no_more_items_are_answered_than_asked_for_the_best_ones(parts):
    tickets = [parts.ticket("u1", ALL, limit=limit) for limit in (5, 1, 100)]
    five, one, everything = parts.service.answer(tickets)
    best = [item.item_id for item in everything.items]
    assert len(best) == NUM_ITEMS
    assert [item.item_id for item in five.items] == best[:5]
    assert [item.item_id for item in one.items] == best[:1]
    assert len(parts.service.popular(parts.ticket("u1", ALL, limit=3)).items) == 3


def test_without_candidates_the_order_is_empty(parts):
    reply = parts.answer("u1", [])
    assert (reply.items, reply.degraded) == ([], [])
    assert parts.service.popular(parts.ticket("u1", [])).items == []


def test_an_item_given_twice_is_ranked_once_and_unknown_ones_are_ranked_in_the_order_they_came(parts):
    unknown = [f"unknown{number}" for number in range(50)]
    reply = parts.answer("u1", [5, *unknown, "5", 6, *unknown[::-1]])
    assert sorted(item.item_id for item in reply.items) == sorted(["5", "6", *unknown])
    assert [item.item_id for item in reply.items if item.item_id in unknown] == unknown


def test_too_many_candidates_are_told(bundle, tmp_path):
    with Parts(bundle, tmp_path, max_candidates=5) as parts:
        assert len(parts.answer("u1", [1, 2, 3, 4, 5, 5, 5]).items) == 5
        with pytest.raises(DataError, match="6 candidates, wanted at most 5"):
            parts.ticket("u1", range(6))


def test_a_request_may_ask_for_less_time_and_not_for_more(bundle, tmp_path):
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:

        def budget(asked):
            ticket = parts.ticket(deadline_ms=asked)
            return ticket.deadline - ticket.arrived

        assert 0.08 < budget(None) <= 0.1
        assert budget(5000) == pytest.approx(budget(None))
        assert budget(50) == pytest.approx(budget(None) / 2)


def test_a_request_has_its_own_id_or_one_that_nobody_else_has(parts):
    assert parts.answer(request_id="mine").request_id == "mine"
    assert len({parts.answer().request_id for _ in range(20)}) == 20


def test_how_long_each_stage_took_is_told_to_who_asks(parts):
    parts.store.delay_s = 0.02
    reply = parts.answer(timings=True)
    assert [*reply.timings_ms] == ["queue", "features", "encode", "model", "reply"]
    assert reply.timings_ms["features"] >= 20
    assert parts.answer().timings_ms == {}


ODD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 2**63 - 1, 1 - 2**63, 0, "", "\x00", True, [], [math.nan])


@pytest.mark.parametrize("feature", ["temperature", "tab", "bid", "rank", "reasons"])
def test_whatever_a_value_is_scores_are_numbers_or_the_feature_is_named(parts, feature):
    for value in (
        math.nan,
        math.inf,
        -math.inf,
        1e308,
        -1e308,
        2**63 - 1,
        1 - 2**63,
        0,
        "",
        "\x00",
        True,
        [],
        [math.nan],
    ):
        is_own = feature not in ("temperature", "tab")
        given = {"item_features": {feature: [value]}} if is_own else {"context": {feature: value}}
        (outcome,) = parts.service.answer([parts.ticket("u1", [1], **given)])
        if isinstance(outcome, DataError):
            assert feature in str(outcome)
        else:
            assert np.isfinite(scores(outcome, [1])).all()


SLOW = {
    "nothing": ({}, []),
    "model": ({"candidate_s": 1e-3}, ["capped_candidates"]),
    "store": ({"store_s": 0.09}, ["last_known_features"]),
    "both": ({"candidate_s": 1e-3, "store_s": 0.09}, ["capped_candidates", "last_known_features"]),
    "every pass": ({"pass_s": 0.2}, ["popularity_order"]),
    "everything": ({"candidate_s": 0.1, "store_s": 1.0, "pass_s": 0.2}, ["popularity_order"]),
}


@pytest.mark.parametrize("slow", SLOW)
def test_what_does_not_fit_into_the_time_is_left_out_and_declared_in_its_order(bundle, ranker, tmp_path, slow):
    costs, wanted = SLOW[slow]
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:
        learn(parts, **costs)
        asked = parts.store.calls["fetch"]
        ticket = parts.ticket("u1", MANY)
        (reply,) = parts.service.answer([ticket])
        assert reply.degraded == wanted
        assert (parts.store.calls["fetch"] == asked) == (slow in ("store", "both", "every pass", "everything"))
        found = [item.item_id for item in reply.items]
        if "popularity_order" in wanted:
            assert found == popular(bundle, MANY)
            prior = bundle.prior[bundle.items.find(found)]
            assert [(item.score, item.tasks) for item in reply.items] == [(float(each), {}) for each in prior]
            return
        if "capped_candidates" in wanted:
            assert 20 <= len(found) < len(MANY)
            assert set(found) == set(popular(bundle, MANY)[: len(found)])
        else:
            assert len(found) == len(MANY)
        assert_scores(reply, ranker.score("u1", found, time_ms=ticket.time_ms), found)


def test_few_candidates_are_not_left_out_for_want_of_time_for_many(bundle, tmp_path):
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:
        learn(parts, candidate_s=1e-3)
        assert parts.answer("u1", [1, 2, 3]).degraded == []


def test_a_deadline_that_is_over_leaves_the_order_by_prior_scores(parts, bundle):
    ticket = parts.ticket("u1", MANY)
    ticket.deadline = ticket.arrived - 1
    (reply,) = parts.service.answer([ticket])
    assert reply.degraded == ["popularity_order"]
    assert [item.item_id for item in reply.items] == popular(bundle, MANY)


def test_time_that_fetching_took_is_not_there_for_the_model(bundle, tmp_path):
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:
        parts.store.delay_s = 0.11
        assert parts.answer("u1", MANY).degraded == ["popularity_order"]
        learn(parts, candidate_s=2e-4)
        parts.store.delay_s = 0.06
        assert parts.answer("u1", MANY).degraded == ["capped_candidates"]


def test_one_that_is_in_a_hurry_does_not_cost_its_neighbours_their_features(parts):
    hurried, other = parts.ticket("u1", [1], deadline_ms=2), parts.ticket("u2", [1])
    hurried.deadline = time.perf_counter() + 0.002
    assert parts.service.answer([other, hurried])[0].degraded == []


def test_when_the_store_fails_the_features_are_those_last_known_or_the_bundles(parts, ranker):
    at = 1_700_000_000_000
    event = {"user": "u1", "behaviour": "click", "item": "33", "time_ms": at, "order": 0}
    parts.store.append([store_feeder.HistoryEvent(**event)])
    assert parts.answer("u1", ALL).degraded == []
    parts.store.is_down = True
    for user in ("u1", "u2", "nobody"):
        ticket = parts.ticket(user, ALL)
        (reply,) = parts.service.answer([ticket])
        assert reply.degraded == ["last_known_features"]
        state = ranker.encoder.snapshot(user)
        if user == "u1":
            state = after(state, ranker.encoder, "click", ("33", at))
        assert_scores(reply, ranker.score(state, ALL, time_ms=ticket.time_ms), ALL)
        served = parts.served()[-1]
        assert served["degraded"] == ["last_known_features"]
        assert served["histories"]["like"]["items"] == parts.bundle.items.keys(state.histories[1])


def test_features_that_were_put_count_and_the_requests_own_come_first(parts, ranker):
    parts.store.put_users({"u1": {"years": 40, "karma": 2.5}})
    parts.store.put_items({"1": {"bid": 4.5, "rank": 3}, "2": {"reasons": ["hot"]}, "3": {"bid": None}})
    known = ranker.encoder.describe("u1", {"years": 40, "karma": 2.5}, {})
    snapshot = ranker.encoder.snapshot("u1")
    state = UserState(known.values, snapshot.histories, snapshot.times)
    items = [1, 2, 3, 4]
    for own, merged in (
        ({}, {"bid": [4.5, None, None, None]}),
        ({"bid": [None, 7, 8, None]}, {"bid": [4.5, 7, 8, None]}),
        ({"bid": [1, 2, 3, 4]}, {"bid": [1, 2, 3, 4]}),
    ):
        ticket = parts.ticket("u1", items, item_features=own)
        (reply,) = parts.service.answer([ticket])
        values = {**merged, "rank": [3, None, None, None], "reasons": [None, ["hot"], None, None]}
        assert_scores(reply, ranker.score(state, items, candidate_values=values, time_ms=ticket.time_ms), items)
        served = parts.served()[-1]
        assert served["user"] == {"years": 40, "karma": 2.5}
        places = [items.index(int(item)) for item in served["items"]]
        assert served["values"] == {name: [column[place] for place in places] for name, column in values.items()}


def test_what_the_store_has_of_items_goes_with_them_when_candidates_are_capped(bundle, ranker, tmp_path):
    with Parts(bundle, tmp_path, deadline_s=0.1) as parts:
        parts.store.put_items({str(item): {"bid": item / 4} for item in ALL})
        learn(parts, candidate_s=1e-3)
        given = {"item_features": {"rank": [number % 50 for number in range(len(MANY))]}}
        ticket = parts.ticket("u1", MANY, **given)
        (reply,) = parts.service.answer([ticket])
        assert reply.degraded == ["capped_candidates"]
        found = [item.item_id for item in reply.items]
        values = {
            "bid": [int(item) / 4 if item.isdigit() else None for item in found],
            "rank": [[str(each) for each in MANY].index(item) % 50 for item in found],
        }
        assert_scores(reply, ranker.score("u1", found, candidate_values=values, time_ms=ticket.time_ms), found)


@pytest.mark.parametrize("of", ["users", "items"])
def test_features_put_for_an_earlier_model_that_this_one_cannot_read_fail_no_request(parts, of):
    if of == "users":
        parts.store.put_users({"u1": {"years": 40, "gone": 1}})
    else:
        parts.store.put_items({"1": {"bid": "was text once", "rank": 3}, "2": {"bid": 4.5}})
    assert len(parts.answer("u1", [1, 2]).items) == 2
    served = parts.served()[-1]  # what can be read counts
    if of == "users":
        assert served["user"] == {"years": 40}
    else:
        found = dict(
            zip(served["items"], zip(*(served["values"][name] for name in ("bid", "rank")), strict=True), strict=True)
        )
        assert found == {"1": (None, 3), "2": (4.5, None)}
    with pytest.raises(DataError, match="'warm'"):
        parts.answer("u1", [1, 2], context={"temperature": "warm"})


def test_what_was_read_and_answered_is_logged_once(parts):
    reply = parts.answer("u1", FIELDS["item_ids"], context={"tab": "t2"}, request_id="r1", limit=4)
    (served,) = parts.served()
    assert served["request_id"] == "r1"
    assert served["user_id"] == "u1"
    assert served["version"] == reply.model_version
    assert served["context"] == {"tab": "t2"}
    assert served["user"] is None
    assert served["items"] == [item.item_id for item in reply.items]
    assert len(served["items"]) == 4
    assert served["scores"] == [item.score for item in reply.items]
    for task in ("click", "like", "watch"):
        assert served["predictions"][task] == [item.tasks[task] for item in reply.items]
    for behaviour, length in (("click", 4), ("like", 2)):
        history = parts.history("u1", behaviour)[:length]
        assert served["histories"][behaviour] == {
            "items": [item for item, _ in history],
            "times": [at for _, at in history],
        }


def test_items_that_nobody_reads_are_not_asked_for(bundle, tmp_path):
    holder = replaced(holder_of(bundle))
    holder.live.__dict__["dynamic_features"] = ()
    with Parts(bundle, tmp_path, holder=holder) as parts:
        asked = []
        parts.store.before = lambda name, *given: asked.extend(given[0]) if name == "fetch" else None
        parts.answer(items=[1, 2])
        assert [[*lookup.items] for lookup in asked] == [[]]


def test_of_an_answer_the_model_did_not_give_no_items_are_logged(parts):
    late = parts.ticket(request_id="r1", context={"tab": "2"})
    late.deadline = late.arrived
    parts.service.answer([late])
    (line,) = parts.served()
    assert (line["request_id"], line["user_id"], line["context"]) == ("r1", "u1", {"tab": "2"})
    assert (line["items"], line["degraded"]) == ([], ["popularity_order"])


def test_a_ticket_that_somebody_has_answered_is_not_logged_or_remembered_again(parts):
    ticket = parts.ticket(request_id="r1")
    ticket.is_answered = True
    parts.service.answer([ticket])
    assert parts.served() == []
    assert parts.memory.user_of("r1") is None
    assert count(parts.metrics, "infnet_predicted_count") == 0


def test_a_ticket_has_one_answer_whoever_is_first(parts):
    (reply,) = parts.service.answer([ticket := parts.ticket()])
    assert ticket.give_up().items == reply.items  # it was decided upon
    given_up = parts.ticket()
    assert given_up.give_up() is None
    assert not given_up.offer(reply)
    assert given_up.give_up() is None


def test_a_log_that_takes_nothing_is_counted_and_costs_no_answer(parts):
    parts.log.is_down = True
    assert len(parts.answer().items) == 3
    assert count(parts.metrics, "infnet_event_log_failures_total") == 1
    parts.log.is_down = False
    parts.answer()
    assert len(parts.served()) == 1


def test_without_a_log_requests_are_answered(parts):
    parts.service.log = None
    assert len(parts.answer().items) == 3
    assert parts.served() == []


def test_whose_request_it_was_is_known_afterwards(parts):
    reply = parts.answer("u7", [1, 2, 3], limit=2)
    assert parts.memory.user_of(reply.request_id) == "u7"
    assert parts.store.users_of([reply.request_id]) == ["u7"]


def test_a_click_on_an_item_of_an_order_by_popularity_enters_the_history(parts, monkeypatch):
    monkeypatch.setattr(store_feeder, "_EVERY_S", 0.01)
    parts.feed()
    ticket = parts.ticket("new", [1, 2, 3])
    ticket.deadline = ticket.arrived
    (reply,) = parts.service.answer([ticket])
    assert reply.degraded == ["popularity_order"]
    parts.tell({"request_id": reply.request_id, "item_id": 1})
    assert [item for item, _ in parts.history("new")] == ["1"]


def test_what_the_model_does_not_know_is_counted_and_so_is_what_it_read(parts):
    for user, items in (("u1", [1, 2]), ("nobody", [1, "x", "y"])):
        parts.answer(user, items)
    metrics = parts.metrics
    assert count(metrics, "infnet_unknown_total", side="user") == 1
    assert count(metrics, "infnet_unknown_total", side="item") == 2
    assert count(metrics, "infnet_candidates_sum") == 5
    length = min(4, len(parts.history("u1")))
    assert count(metrics, "infnet_history_events_sum", behaviour="click") == length
    assert count(metrics, "infnet_history_events_count", behaviour="click") == 2
    assert count(metrics, "infnet_predicted_count", task="like") == 2
    assert count(metrics, "infnet_batch_requests_count") == 2


def test_a_request_is_answered_by_one_model_whole_even_if_another_takes_over_meanwhile(bundle, tmp_path):
    prior = np.arange(len(bundle.prior), dtype=np.float32)
    other = LiveModel.load(altered(bundle, tmp_path / "other", items__prior_dot_npy=prior))
    holder = replaced(holder_of(bundle))
    first = holder.live
    with Parts(bundle, tmp_path, holder=holder, deadline_s=0.1) as parts:
        learn(parts, candidate_s=1e-3)
        parts.store.before = lambda name, *_: setattr(holder, "live", other) if name == "fetch" else None
        reply = parts.answer("u1", MANY)
        assert reply.model_version == first.version
        assert reply.degraded == ["capped_candidates"]
        assert {item.item_id for item in reply.items} == set(popular(bundle, MANY)[: len(reply.items)])
        learn(parts, candidate_s=1e-3)
        reply = parts.answer("u1", MANY)
        assert reply.model_version == other.version
        assert {item.item_id for item in reply.items} >= {"40", "39", "38"}


def test_a_model_without_the_task_that_is_asked_for_does_not_fail_the_others(bundle, tmp_path):
    holder = replaced(holder_of(bundle))
    with Parts(bundle, tmp_path, holder=holder, by="like") as parts:
        tickets = [parts.ticket(), parts.ticket(by="click"), parts.ticket(by="like")]
        ranker = copy.copy(holder.live.ranker)
        ranker.tasks = ("click", "love", "watch")
        holder.live = dataclasses.replace(holder.live, ranker=ranker)
        first, second, third = parts.service.answer(tickets)
        assert isinstance(first, RankReply)  # by the first task
        assert isinstance(second, RankReply)
        assert isinstance(third, SpecError)
        assert "no task is called 'like'" in str(third)
