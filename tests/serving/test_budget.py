import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.serving.budget import Costs


def test_with_time_enough_everything_is_done():
    plan = Costs().plan(0.1, 500)
    assert plan.asks_store
    assert plan.num_candidates == 500


def test_short_of_time_candidates_go_first_then_the_store_then_the_model():
    costs = Costs()
    steps = [costs.plan(left / 10_000, 2000) for left in range(1000, -1, -1)]
    kinds = [
        "all" if p.num_candidates == 2000 else "capped" if p.asks_store else "unasked" if p.num_candidates else "prior"
        for p in steps
    ]
    order = ["all", "capped", "unasked", "prior"]
    assert sorted(kinds, key=order.index) == kinds
    assert set(kinds) == set(order)


@given(left=st.floats(-1, 1), num=st.integers(0, 20_000))
def test_more_time_never_scores_less(left, num):
    costs = Costs()
    less, more = costs.plan(left, num), costs.plan(left + 0.01, num)
    assert 0 <= less.num_candidates <= num
    assert more.num_candidates >= less.num_candidates or more.asks_store > less.asks_store


def test_what_was_observed_decides():
    costs = Costs()
    for _ in range(200):
        costs.scored(0.1, 500)
        costs.fetched(0.02)
    assert costs.candidate_s == pytest.approx(0.1 / 500, rel=0.1)
    assert costs.plan(0.1, 500).num_candidates < 400
    for _ in range(200):
        costs.scored(0.002, 500)
        costs.fetched(0.001)
    assert costs.plan(0.1, 500).num_candidates == 500


def test_a_deadline_that_is_over_leaves_the_prior_alone():
    assert Costs().plan(-0.001, 10).num_candidates == 0


def test_one_long_pause_is_not_taken_for_the_rule():
    costs = Costs()
    costs.fetched(2.0)
    costs.scored(2.0, 500)
    costs.scored(2.0, 1)
    assert costs.plan(0.1, 500) == Costs().plan(0.1, 500)


def test_what_was_too_slow_is_tried_again_after_a_while():
    costs = Costs()
    for _ in range(300):
        costs.fetched(1.0)
        costs.scored(1.0, 500)
        costs.scored(0.5, 1)
    without = 0
    while not (plan := costs.plan(0.1, 500)).num_candidates or not plan.asks_store:
        costs.left_out(plan)
        without += 1
    assert 50 < without < 400
