"""Weights found by search, beside all that there are."""

import json
import sys

import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import DataError, SpecError
from infnet.evaluation.figures import save_figure
from infnet.evaluation.frontier_figure import frontier_figure
from infnet.evaluation.policy_evidence import Evidence
from infnet.evaluation.policy_search import search_frontier
from infnet.ranking.policy import Policy
from infnet.ranking.reweighting import CandidateList, Reweighted
from infnet.ranking.weight_space import WeightSpace

TASKS = [TaskLayout(name=name, kind="binary", loss="bce") for name in ("click", "like", "share")]
TEXT = "objectives: {click: {formula: p_click}, like: {formula: p_like, weight: 0.1}}\n"


def world(num_users=300, size=6, *, rewards=("click", "like"), text=TEXT, seed=0, noise=0.0):
    """The first two of each user's items are shown; each earns just what is predicted, but for noise."""
    rng, policy = np.random.default_rng(seed), Policy.parse(text, TASKS)
    predicted = {task.name: rng.random((num_users, size)) for task in TASKS}
    lists = [CandidateList({name: values[user] for name, values in predicted.items()}) for user in range(num_users)]
    earned = {name: predicted[name].ravel() + noise * rng.normal(size=num_users * size) for name in rewards}
    evidence = Evidence(
        "a world",
        Reweighted(policy, lists, 2),
        np.arange(num_users),
        earned,
        lambda positions: np.where(positions >= 0, 1.0, 0.0),
        is_sampled=False,
    )
    return evidence, WeightSpace(policy, 100)


def test_the_front_is_that_of_all_weights():
    evidence, space = world()
    found = search_frontier(evidence, space, trials=150)
    chooses = np.random.default_rng(0).permutation(300) < 150
    declared = evidence.earned(space.weights(space.declared)).of(chooses)
    # One weight is free, so that a fine grid is all that there is.
    grid = [
        tuple(each.value for each in evidence.earned(np.array([1.0, weight])).of(chooses).beside(declared))
        for weight in (0, *np.geomspace(0.001, 10, 300))
    ]
    for number in found.front:
        click, like = found.trials[number].chosen
        assert not any(c > click + 0.002 and p > like + 0.002 for c, p in grid)
    ends = np.array([found.trials[number].chosen for number in found.front])
    assert ends.max(axis=0) == pytest.approx(np.array(grid).max(axis=0), abs=0.002)
    assert found.knee is not None
    assert found.trials[0].weights == (1.0, 0.1)
    # Where both rewards are worth the same to the policy, as they are in this world, the sum is the largest.
    assert 0.3 < found.trials[found.knee].weights[1] < 3


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_the_best_under_a_limit_is_that_of_all_weights(sampler):
    evidence, space = world()
    found = search_frontier(evidence, space, limits={"click": -0.05}, trials=80, sampler=sampler)
    chooses = np.random.default_rng(0).permutation(300) < 150
    declared = evidence.earned(space.weights(space.declared)).of(chooses)
    grid = [
        tuple(each.value for each in evidence.earned(np.array([1.0, weight])).of(chooses).beside(declared))
        for weight in np.geomspace(0.001, 10, 1000)
    ]
    best = max(like for click, like in grid if click >= -0.05)
    click, like = found.trials[found.kept].chosen
    assert (found.goal, len(found.trials)) == ("like", 120)
    assert click >= -0.05
    assert like == pytest.approx(best, abs=0.005)
    limit = found.trials[found.kept].reported[0]
    assert limit.high >= -0.05
    assert found.verdict("click") in ("kept", "open")


def test_what_is_reported_is_no_better_than_it_is():
    """Where choices are luck, those who chose see gains and those who report see none."""
    misses, gaps = 0, []
    truth, _ = world(3000, seed=100)
    declared = truth.earned(np.array([1.0, 0.1]))
    for seed in range(8):
        evidence, space = world(60, noise=2.0, seed=seed)
        found = search_frontier(evidence, space, trials=30, seed=seed)
        for index in (0, 1):
            best = max(found.trials, key=lambda trial, index=index: trial.chosen[index])
            real = truth.earned(np.array(best.weights)).beside(declared)[index].value
            gaps.append(best.chosen[index] - real)
            misses += not best.reported[index].low <= real <= best.reported[index].high
    assert np.mean(gaps) > 0.02
    assert misses <= 3  # of 16 at 95%, with few users


def test_the_same_seed_finds_the_same():
    evidence, space = world(40)
    limits = {"click": -0.1}
    once, again, other = (search_frontier(evidence, space, trials=30, seed=s, limits=limits) for s in (3, 3, 4))
    assert once == again
    assert once != other
    assert once.choosing == once.reporting == 20


def test_a_limit_that_nothing_keeps_is_told():
    evidence, space = world()
    found = search_frontier(evidence, space, limits={"click": 0.5}, trials=20)
    assert found.kept is None
    assert (
        "No point keeps click at +50% or better among the users who chose; the nearest has click +" in found.as_text()
    )
    assert found.as_json()["verdicts"] == {}


def test_the_table_marks_what_has_a_name():
    evidence, space = world()
    found = search_frontier(evidence, space, limits={"click": -0.05}, trials=60)
    lines = found.as_text().splitlines()
    assert lines[0] == "Evidence: a world."
    assert lines[3].split() == ["weight", "click", "weight", "like", "click", "like"]
    marks = [line.split(")")[-1].strip() for line in lines[5:] if line.startswith(" ")]
    assert {"declared", "knee", "kept"} <= {mark for each in marks for mark in each.split(", ")}
    assert any(line.startswith("'kept' has the most like with click at -5% or better") for line in lines)


def test_a_front_beside_which_the_declared_policy_is_poor():
    text = TEXT.replace(
        "{click: {formula: p_click}", "{none: {formula: p_share}, click: {formula: p_click, weight: 0.1}"
    )
    evidence, space = world(text=text)
    found = search_frontier(evidence, space, trials=60)
    assert 0 not in found.front
    assert any(line.endswith("declared (dominated)") for line in found.as_text().splitlines())


def test_three_rewards_have_two_panels(tmp_path):
    evidence, space = world(rewards=("click", "like", "share"))
    found = search_frontier(evidence, space, limits={"share": -0.5}, trials=30)
    figure = frontier_figure(found, "a title that is " + "very " * 60 + "long")
    assert len(figure.axes) == 2
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.width
    save_figure(figure, tmp_path / "front.png")
    assert [file.name for file in tmp_path.iterdir()] == ["front.png"]


def test_all_is_json_without_gaps():
    evidence, space = world(40)
    document = search_frontier(evidence, space, trials=20).as_json()
    again = json.loads(json.dumps(document, allow_nan=False))
    assert len(again["trials"]) == 20
    assert again["trials"][0]["weights"] == {"click": 1, "like": 0.1}
    assert again["trials"][0]["reporting"]["click"] == pytest.approx({"change": 0, "low": 0, "high": 0})


def test_pages_that_stand_as_nobody_would_have_them_are_no_evidence():
    evidence, space = world(40)
    nowhere = Evidence(
        "pages", evidence.lists, evidence.users, evidence.rewards, lambda p: np.zeros(len(p)), is_sampled=True
    )
    with pytest.raises(DataError, match="the declared policy earns nan of 'click' among the users who choose"):
        search_frontier(nowhere, space)


def test_few_decisions_are_doubted():
    evidence, space = world(40)
    sampled = Evidence(
        "pages", evidence.lists, evidence.users, evidence.rewards, lambda p: (p == 0) * 6.0, is_sampled=True
    )
    found = search_frontier(sampled, space, trials=10)
    assert found.trials[0].effective == pytest.approx(20)
    assert "declared: not to be trusted: it rests on some 20 decisions, wanted at least 100" in found.as_text()


def test_a_single_reward_has_no_front():
    evidence, space = world(rewards=("click",))
    with pytest.raises(SpecError, match="'click' is a single one; wanted two or more"):
        search_frontier(evidence, space)


def test_what_the_declared_policy_does_not_earn_cannot_be_compared_with():
    evidence, space = world(40)
    lost = dict(evidence.rewards, like=-evidence.rewards["like"])
    poor = Evidence("a world", evidence.lists, evidence.users, lost, evidence.weigh, is_sampled=False)
    with pytest.raises(DataError, match=r"the declared policy earns -\S+ of 'like' among the users who choose"):
        search_frontier(poor, space)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    evidence, space = world(10)
    with pytest.raises(SpecError, match=r"searched by Optuna, which is not here: pip install 'infnet\[tune\]'"):
        search_frontier(evidence, space)
