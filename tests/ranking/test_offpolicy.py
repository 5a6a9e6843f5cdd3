"""Estimates of what other policies earn, against the truth of a simulated world."""

import numpy as np
import pytest

from infnet.errors import DataError
from infnet.ranking.offpolicy import Decisions, evaluate_offline

ACTIONS = 5


def world(seed=0):
    """Click rates of contexts and actions, the log's policy and another one."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(1.0, 4.0, (20, ACTIONS))
    logged = rng.dirichlet(np.ones(ACTIONS), 20) * 0.8 + 0.2 / ACTIONS
    other = np.zeros((20, ACTIONS))
    other[np.arange(20), (rates + rng.normal(0, 0.05, rates.shape)).argmax(axis=1)] = 1.0
    return rates, logged, other, float((other * rates).sum(axis=1).mean())


def decisions(rates, logged, other, num, seed, model=None):
    rng = np.random.default_rng(seed)
    context = rng.integers(0, 20, num)
    action = np.array([rng.choice(ACTIONS, p=logged[c]) for c in context])
    reward = (rng.random(num) < rates[context, action]).astype(float)
    more = {}
    if model is not None:
        more = {"expected": model[context, action], "expected_wanted": (other * model)[context].sum(axis=1)}
    return Decisions.of(np.arange(num), np.arange(num), reward, logged[context, action], other[context, action], **more)


def test_estimates_are_near_the_truth_and_their_intervals_hold_it():
    rates, logged, other, truth = world()
    held = np.zeros(3)
    values = np.zeros((100, 3))
    for run in range(100):
        found = evaluate_offline(decisions(rates, logged, other, 1500, run, rates))
        for place, each in enumerate((found.ips, found.snips, found.doubly_robust)):
            held[place] += each.low <= truth <= each.high
            values[run, place] = each.value
        assert found.doubt is None
    assert values.mean(axis=0) == pytest.approx([truth] * 3, rel=0.03)
    assert (held >= 88).all()
    spread = values.std(axis=0)
    assert spread[1] < spread[0]
    assert spread[2] < spread[0]


def test_a_wrong_model_of_rewards_does_no_harm_in_the_mean():
    rates, logged, other, truth = world(1)
    wrong = np.full_like(rates, 0.5)
    found = [
        evaluate_offline(decisions(rates, logged, other, 1500, run, wrong)).doubly_robust.value for run in range(60)
    ]
    assert np.mean(found) == pytest.approx(truth, rel=0.05)


def test_the_logs_own_policy_earns_what_it_earned():
    rates, logged, _, _ = world()
    made = decisions(rates, logged, logged, 500, 0)
    found = evaluate_offline(made)
    assert found.ips.value == found.snips.value == pytest.approx(made.reward.mean())
    assert found.effective == pytest.approx(500)


def test_requests_of_one_user_are_one_observation():
    rates, logged, other, _ = world()
    one = decisions(rates, logged, other, 1000, 0)
    twice = Decisions.of(
        np.arange(2000),
        np.tile(one.user, 2),
        *(np.tile(each, 2) for each in (one.reward, one.propensity, one.wanted)),
    )
    for name in ("ips", "snips", "doubly_robust"):
        single, double = (getattr(evaluate_offline(each), name) for each in (one, twice))
        assert double.value == pytest.approx(single.value)
        assert double.high - double.low == pytest.approx(single.high - single.low, rel=1e-6)


def test_an_answer_that_rests_on_little_is_doubted():
    few = Decisions.of(range(1000), range(1000), np.ones(1000), np.full(1000, 0.5), [1] * 20 + [0] * 980)
    assert evaluate_offline(few).doubt.startswith("it rests on some 20 decisions, wanted at least 100")
    none = evaluate_offline(Decisions.of([0, 1], [0, 1], [1, 1], [0.5, 0.5], [0, 0]))
    assert (none.effective, np.isnan(none.snips.value)) == (0, True)
    assert none.doubt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [0.5, 0.0]}, "the propensity of decision 1 is 0, wanted more than 0, at most 1"),
        ({"propensity": [0.5]}, "there are 2 rewards and 1 of propensity"),
        ({"reward": [1, np.nan]}, "reward of decision 1 is no number"),
    ],
)
def test_what_are_no_decisions_is_told(change, message):
    given = {"request": [0, 1], "user": [0, 0], "reward": [1, 0], "propensity": [0.5, 0.5], "wanted": [1, 0]}
    with pytest.raises(DataError, match=message):
        Decisions.of(**given | change)


def test_no_decisions_are_no_evidence():
    with pytest.raises(DataError, match="the log holds no decision that was left to chance"):
        evaluate_offline(Decisions.of([], [], [], [], []))
