"""Policies compared by pages that the real service left to chance."""

import json

import pytest
from typer.testing import CliRunner

from infnet.cli.policy import policy_app
from infnet.errors import DataError
from infnet.experiments.logged_pages import LoggedPages
from infnet.experiments.metrics import Measure
from infnet.ranking.offpolicy import evaluate_offline
from infnet.ranking.policy import Policy
from infnet.serving.policy_file import PolicyFile
from service_parts import Parts, holder_of

BY_PRICE = "inputs: {price: {item: price_now}}\nobjectives: {price: {formula: 'SIGN * price'}}\n"
CLICK = Measure(event="click")


@pytest.fixture(scope="module")
def log(bundle, tmp_path_factory):
    """400 pages of three items; whoever sees item 2 first clicks on it, in three of four cases, and on nothing else."""
    directory = tmp_path_factory.mktemp("explored")
    file = directory / "served.yaml"
    file.write_text(BY_PRICE.replace("SIGN", "1") + "exploration: {share: 1}\n")
    with Parts(bundle, directory, policy=PolicyFile(file, holder_of(bundle))) as parts:
        for number in range(400):
            request = {"request_id": f"r{number}"}
            page = parts.answer(f"u{number % 11}", [1, 2, 3], item_features={"price_now": [1, 3, 2]}, **request)
            parts.tell({**request, "item_id": page.items[1].item_id, "type": "impression"})
            if page.items[0].item_id == "2" and number % 4:
                parts.tell({**request, "item_id": "2", "type": "click"})
    return directory / "events"


def policy(bundle, sign, extra=""):
    return Policy.parse(BY_PRICE.replace("SIGN", sign) + extra, bundle.layout.tasks)


def test_what_other_orders_would_have_earned_is_told(log, bundle):
    pages = LoggedPages.read(log, CLICK)
    assert len(pages.pages) == 400
    dear, cheap = (pages.decisions(pages.orders(policy(bundle, sign))) for sign in ("1", "-1"))
    best, worst = evaluate_offline(dear), evaluate_offline(cheap)
    for each in (best.ips, best.snips, best.doubly_robust):
        assert each.low < 0.75 < each.high
    assert worst.ips.value == worst.snips.value == 0
    assert best.effective > 300
    change = dear.minus(cheap)
    assert change.low > 0.3
    assert change.value == pytest.approx(best.doubly_robust.value - worst.doubly_robust.value)


def test_pages_of_fewer_items_earn_what_these_earn(log, bundle):
    pages = LoggedPages.read(log, CLICK)
    orders = pages.orders(policy(bundle, "1", "constraints: [{floor: price, at_least: 3}]"))
    assert {len(order) for order in orders} == {1}
    found = evaluate_offline(pages.decisions(orders))
    assert found.ips.low < 0.75 < found.ips.high


def test_a_field_that_was_not_logged_is_told(log, bundle):
    other = Policy.parse("inputs: {x: {item: margin}}\nobjectives: {x: {formula: x}}", bundle.layout.tasks)
    with pytest.raises(
        DataError, match="no page has the field 'margin', which policy 'policy' reads; serve for a while"
    ):
        LoggedPages.read(log, CLICK).orders(other)


@pytest.mark.parametrize(
    ("event", "message"),
    [("clik", "no event is of type 'clik'; did you mean 'click'"), ("like", "no event is of type 'like'")],
)
def test_a_reward_that_was_never_earned_is_told(log, event, message):
    with pytest.raises(DataError, match=message):
        LoggedPages.read(log, Measure(event=event))


def test_a_log_without_chance_is_no_evidence(bundle, tmp_path):
    with Parts(bundle, tmp_path) as parts:
        parts.answer()
    with pytest.raises(DataError, match=r"no page was answered in a random order; serve with a policy that has"):
        LoggedPages.read(tmp_path / "events", CLICK)
    with pytest.raises(DataError, match=r"served: is no directory; give the directory of an event log"):
        LoggedPages.read(tmp_path, CLICK)


def test_the_command_shows_both_and_their_difference(log, bundle, tmp_path):
    for name, sign in (("dear.yaml", "1"), ("cheap.yaml", "-1")):
        (tmp_path / name).write_text(BY_PRICE.replace("SIGN", sign))
    arguments = ["compare", str(tmp_path / "cheap.yaml"), str(tmp_path / "dear.yaml"), "--events", str(log)]
    result = CliRunner().invoke(policy_app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "400 pages in random orders; click per page, 95% intervals"
    assert lines[4].startswith("cheap.yaml")
    assert lines[-1].startswith("dear.yaml beside cheap.yaml: 0.")
    assert lines[-1].endswith("the same choice on 0% of pages")
    found = json.loads(CliRunner().invoke(policy_app, [*arguments, "--json"]).stdout)
    assert found["difference"]["low"] > 0.3
    assert [one["doubt"] for one in found["policies"]] == [None, None]
