"""Weights judged by pages whose order was left to chance."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from infnet.cli.policy import policy_app
from infnet.data.layout import TaskLayout
from infnet.errors import DataError
from infnet.evaluation.policy_search import search_frontier
from infnet.experiments.logged_pages import LoggedPages
from infnet.experiments.metrics import Measure
from infnet.experiments.page_evidence import page_evidence
from infnet.ranking.offpolicy import evaluate_offline
from infnet.ranking.policy import Policy
from infnet.ranking.weight_space import WeightSpace
from joined_log import LogFiles, a_request, an_event

TEXT = """
inputs: {price: {item: price_now, range: [0, 10]}, quality: {item: quality, range: [0, 10]}}
objectives:
  price: {formula: price, weight: 1}
  quality: {formula: quality, weight: 0.5}
"""
TASKS = [TaskLayout(name="click", kind="binary", loss="bce")]
FIELDS = {"dear": (9, 1), "good": (1, 9), "plain": (2, 2)}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """600 pages of three items. Who sees the dear one first clicks on it mostly, who sees the good one likes it."""
    files, rng = LogFiles(tmp_path_factory.mktemp("explored") / "events"), np.random.default_rng(0)
    for number in range(600):
        name, items = f"r{number}", [[*FIELDS][place] for place in rng.permutation(3)]
        prices, qualities = ([FIELDS[item][place] for item in items] for place in (0, 1))
        fields = {"price_now": prices, "quality": qualities}
        files.serve(a_request(name, items, number, user_id=f"u{number % 50}", is_random=True, fields=fields))
        if rng.random() < 0.75 and items[0] != "plain":
            kind = "click" if items[0] == "dear" else "like"
            files.tell(an_event(name, items[0], kind, number, value=float(rng.integers(1, 9))))
        files.tell(an_event(name, "plain", "click", number), an_event(name, "plain", "like", number, value=3.0))
    return files.path


def policy(text=TEXT):
    return Policy.parse(text, TASKS)


def test_what_weights_earn_is_what_the_comparison_of_policies_says(log):
    evidence = page_evidence(policy(), log, ["click", "like.value"])
    everybody = np.ones(evidence.num_users, dtype=bool)
    for weights in ([1.0, 0.5], [1.0, 3.0]):
        other = policy().with_weights({"price": weights[0], "quality": weights[1]})
        earned = evidence.earned(np.array(weights)).of(everybody)
        for place, name in enumerate(("count", "value")):
            pages = LoggedPages.read(log, Measure(event=("click", "like")[place], sum=name))
            wanted = evaluate_offline(pages.decisions(pages.orders(other)))
            assert earned.means()[place] * 3 == pytest.approx(wanted.snips.value)
            assert earned.effective == pytest.approx(wanted.effective)


def test_the_search_finds_that_one_reward_costs_the_other(log):
    found = search_frontier(page_evidence(policy(), log, ["click", "like"]), WeightSpace(policy(), 100), trials=30)
    assert found.is_sampled
    clicks, likes = (found.trials[found.front[end]].reported for end in (0, -1))
    assert clicks[0].low <= 0 <= clicks[0].high
    assert likes[0].high < -0.1
    assert likes[1].low > 0.1


@pytest.mark.parametrize(
    ("text", "rewards", "message"),
    [
        (TEXT, ["click", "liek"], "no event is of type 'liek'; did you mean 'like'"),
        (TEXT.replace("item: quality", "item: margin"), ["click", "like"], "no page has the field 'margin'"),
        (TEXT + "diversity: {method: mmr, strength: 0.2}", ["click", "like"], "has no vectors of items"),
    ],
)
def test_what_the_log_cannot_say_is_told(log, text, rewards, message):
    with pytest.raises(DataError, match=message):
        page_evidence(policy(text), log, rewards)


def test_the_command_takes_an_event_log(log, tmp_path):
    (tmp_path / "policy.yaml").write_text(TEXT)
    words = ["frontier", tmp_path / "policy.yaml", "--events", log, "--objectives", "click,like", "--trials", 20]
    result = CliRunner().invoke(policy_app, [*map(str, words), "--out", str(tmp_path / "out"), "--keep", "like=-10%"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        "Evidence: 600 served pages in random orders, by self-normalised inverse propensity."
    )
    found = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert found["source"] == {"events": str(log)}
    assert found["goal"] == "click"
    assert found["trials"][0]["effective_decisions"] > 100
