import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import DataError
from infnet.evaluation.logged_lists import LoggedLists
from infnet.evaluation.random_rows import random_decisions, shown_rows
from infnet.ranking.offpolicy import evaluate_offline
from infnet.ranking.policy import Policy
from infnet.ranking.reweighting import CandidateList, Reweighted

TASKS = [TaskLayout(name="click", kind="binary", loss="bce")]
BEST, WORST = (Policy.parse(f"objectives: {{x: {{formula: {text}}}}}", TASKS) for text in ("p_click", "1 - p_click"))


def logged(policy, sizes, predicted, clicks, users):
    ends = np.cumsum(sizes)
    lists = [CandidateList({"click": predicted[end - size : end]}) for size, end in zip(sizes, ends, strict=True)]
    return LoggedLists(Reweighted(policy, lists), np.asarray(users), {"click": np.asarray(clicks, dtype=float)})


def decisions(policy, made, predicted, top=1):
    return random_decisions(made, shown_rows(policy, made, top), top, "click", predicted)


def test_an_exposure_earns_what_the_choice_from_its_list_earned():
    predicted, clicks = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.3]), [0, 1, 0, 1, 0, 1]
    made = logged(BEST, [3, 2, 1], predicted, clicks, [0, 0, 1])
    found = decisions(BEST, made, predicted)
    assert found.propensity.tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)  # the single row is no choice
    assert found.wanted.tolist() == [0, 1, 0, 0, 1]
    assert found.reward.tolist() == clicks[:5]
    assert found.expected_wanted.tolist() == pytest.approx([0.9] * 3 + [0.8] * 2)
    told = evaluate_offline(found)
    assert told.ips.value == told.snips.value == pytest.approx(3 / 5)  # of three exposures one click each, of two none
    assert told.doubly_robust.value == pytest.approx((3 * 0.9 + 2 * 0.8 + 3 * (1 - 0.9) + 2 * (0 - 0.8)) / 5)
    two = decisions(BEST, made, predicted, top=2)
    assert two.wanted.tolist() == [0, 0.5, 0.5]
    assert evaluate_offline(two).ips.value == pytest.approx(0.5)


def test_a_policy_that_shows_fewer_shares_among_these_and_one_that_shows_none_earns_nothing():
    floor = "objectives: {x: {formula: p_click}}\nconstraints: [{floor: p_click, at_least: LEAST}]\n"
    predicted = np.array([0.1, 0.9, 0.5, 0.7])
    for least, wanted in (("0.6", [0, 0.5, 0, 0.5]), ("0.8", [0, 1, 0, 0]), ("0.95", [0, 0, 0, 0])):
        policy = Policy.parse(floor.replace("LEAST", least), TASKS)
        made = logged(policy, [4], predicted, [1, 1, 1, 1], [0])
        assert decisions(policy, made, predicted, top=2).wanted.tolist() == wanted


def test_lists_that_leave_no_choice_are_told():
    made = logged(BEST, [2, 1], np.array([0.1, 0.2, 0.3]), [0, 1, 0], [0, 1])
    with pytest.raises(DataError, match=r"no list has more than 2 rows, .* give a smaller --top, or --lists user"):
        decisions(BEST, made, np.zeros(3), top=2)


def test_intervals_hold_the_truth_of_policies_in_a_world_where_it_is_known():
    """Chances of clicks are the user's and the item's; predictions know them in part."""
    rng, held = np.random.default_rng(3), []
    for _ in range(200):
        sizes = rng.integers(2, 7, 300)
        users = np.sort(rng.integers(0, 120, 300))
        chance = np.clip(rng.beta(2, 5, sizes.sum()) + np.repeat(rng.normal(0, 0.1, 120)[users], sizes), 0.01, 0.99)
        predicted = np.clip(chance + rng.normal(0, 0.15, len(chance)), 0.01, 0.99)
        clicks = rng.random(len(chance)) < chance
        both = []
        for policy in (BEST, WORST):
            made = logged(policy, sizes, predicted, clicks, users)
            found = decisions(policy, made, predicted)
            truth = float((chance * found.wanted / found.propensity).sum() / len(chance))
            told = evaluate_offline(found)
            held.append([each.low <= truth <= each.high for each in (told.ips, told.snips, told.doubly_robust)])
            assert told.doubt is None
            both.append((found, truth))
        (best, high), (worst, low) = both
        change = best.minus(worst)
        assert change.low > 0
        held.append([change.low <= high - low <= change.high] * 3)
    assert (np.mean(held, axis=0) > 0.93).all()
