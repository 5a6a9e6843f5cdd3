"""Many weights at once equal one policy after the other."""

import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import DataError, SpecError
from infnet.ranking.policy import Policy
from infnet.ranking.reweighting import CandidateList, Reweighted
from infnet.ranking.weight_space import WeightSpace

TASKS = (
    TaskLayout(name="click", kind="binary", loss="bce"),
    TaskLayout(name="watch", kind="regression", loss="mse"),
)
TEXT = """
inputs: {price: {item: price, range: [0, 10]}, is_new: {request: is_new, range: [0, 1]}}
objectives:
  click: {formula: p_click, weight: 1}
  time: {formula: log1p(watch), weight: 0.2}
  price: {formula: price, weight: 0.05}
"""
SEGMENTS = "segments: [{when: is_new > 0.5, weights: {time: 0.9}}]\n"
VARIANTS = {
    "sum": "",
    "segments": SEGMENTS,
    "normalised": "normalise: zscore\n" + SEGMENTS,
    "product": "combine: product_of_powers\n" + SEGMENTS,
    "ranks": "combine: rank_fusion\n",
    "rules": SEGMENTS + "constraints: [{floor: p_click, at_least: 0.2}, {at_most: 1, per: shop, within: 2}]\n",
    "diversity": "diversity: {method: mmr, strength: 0.5, by: [shop]}\n",
}


def lists(num=30, seed=0):
    rng = np.random.default_rng(seed)
    for number, size in enumerate(rng.integers(1, 9, num).tolist()):
        predictions = {"click": rng.random(size), "watch": rng.random(size) * 20}
        items = {"price": rng.integers(0, 9, size).tolist(), "shop": rng.integers(0, 3, size).tolist()}
        yield CandidateList(predictions, items, {"is_new": number % 2})


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_positions_are_those_of_a_policy_with_these_weights(variant, limit):
    policy = Policy.parse(TEXT + VARIANTS[variant], TASKS)
    made = Reweighted(policy, lists(), limit)
    assert len(made) == 30
    for weights in ([1, 0.2, 0.05], [1, 3, 0.01], [1, 0.001, 2]):
        other = policy.with_weights(dict(zip(("click", "time", "price"), weights, strict=True)))
        found = made.positions(np.array(weights, dtype=np.float64))
        scores = made.scores(np.array(weights, dtype=np.float64))
        for number, each in enumerate(lists()):
            scored = other.score(each.predictions, each.items, each.request)
            places = other.reranker.order(scored.scores, scored.columns, each.items, limit or len(each)).places
            wanted = np.full(len(each), -1)
            wanted[places] = np.arange(len(places))
            mine = slice(made.starts[number], made.starts[number + 1])
            assert found[mine].tolist() == wanted.tolist()
            assert scores[mine] == pytest.approx(scored.scores)


def test_lists_without_vectors_cannot_be_diverse_by_them():
    policy = Policy.parse(TEXT + "diversity: {method: mmr, strength: 0.5}\n", TASKS)
    with pytest.raises(
        DataError, match="compares vectors of items, which were not kept; declare the fields it is 'by'"
    ):
        Reweighted(policy, lists())
    with pytest.raises(DataError, match="there is no list"):
        Reweighted(Policy.parse(TEXT, TASKS), [])


def test_weights_are_searched_around_the_declared_ones():
    space = WeightSpace(Policy.parse(TEXT, TASKS), 100)
    assert (space.fixed, space.free) == ("click", ("time", "price"))
    assert space.weights(space.declared).tolist() == [1, 0.2, 0.05]
    assert space.weights({"time": 1, "price": -1}).tolist() == [1, 20, 0.0005]
    assert space.weights({"time": space.lowest, "price": 0.5}).tolist() == [1, 0, 0.5]
    assert space.weights({"time": np.log10(1.23456) / 2, "price": 0}).tolist() == [1, 0.2469, 0.05]
    assert len(space.corners()) == 5


def test_signs_stay_and_an_absent_objective_may_come_in():
    text = TEXT.replace("weight: 1}", "weight: -2}").replace("weight: 0.2", "weight: 0")
    space = WeightSpace(Policy.parse(text, TASKS), 10)
    assert space.fixed == "click"
    assert space.weights(space.declared).tolist() == [-2, 0, 0.05]
    assert space.weights({"time": 0, "price": 0}).tolist() == [-2, 2, 0.05]


def test_ranks_are_fused_by_weights_above_0():
    space = WeightSpace(Policy.parse(TEXT + VARIANTS["ranks"], TASKS), 100)
    assert all((space.weights(corner) > 0).all() for corner in [*space.corners(), {"time": space.lowest, "price": -1}])


@pytest.mark.parametrize(
    ("text", "factor", "message"),
    [
        (
            "objectives: {click: {formula: p_click}}",
            100,
            "has the objective 'click' alone, so that there are no weights",
        ),
        (TEXT, 1, "--range: 1 is not between 1 and 1e6"),
        (TEXT, float("nan"), "--range: nan is not between"),
        (
            TEXT + "combine: product_of_powers",
            1e5,
            "power that may overflow; wanted a smaller one, or a smaller --range",
        ),
    ],
)
def test_weights_that_cannot_be_searched_are_told(text, factor, message):
    with pytest.raises(SpecError, match=message):
        WeightSpace(Policy.parse(text, TASKS), factor)
