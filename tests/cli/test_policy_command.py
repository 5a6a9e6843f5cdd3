import json
import sys

import pytest
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.policy import policy_app

POLICY = """
name: home
inputs:
  bid: {item: bid, unit: USD, range: [0, 100]}
objectives:
  revenue: {formula: "bid * p_click", weight: 2}
  time: {formula: "log1p(watch)"}
constraints:
  - {at_most: 1, per: author, within: 3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def invoke(*arguments):
    result = CliRunner().invoke(policy_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_check_shows_what_formulas_read_and_come_to(file, bundle):
    lines = invoke("check", file, "--bundle", bundle.path).splitlines()
    assert lines[0].startswith(f"{file}: policy 'home', version ")
    assert any(line.split() == ["revenue", "2", "bid", "*", "p_click", "0", "to", "100"] for line in lines)
    assert any(line.split() == ["bid", "item", "bid", "USD", "0", "to", "100"] for line in lines)
    assert lines[-1] == "  at_most 1 per author within 3"


def test_without_a_bundle_tasks_are_taken_on_trust(file):
    text = invoke("check", file)
    assert "Taken to be tasks of the model: click, watch; give --bundle to check them" in text
    found = json.loads(invoke("check", file, "--json"))
    assert found["objectives"]["revenue"]["bounds"] == [0, 100]
    assert (found["item_fields"], found["request_fields"]) == (["bid", "author"], [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("p_click", "p_clik", "policy.yaml, line 6: objectives.revenue.formula: 'p_clik' is neither a prediction nor"),
        ("bid * p_click", "bidd * p_click", "did you mean 'bid'?"),
        ("bid * p_click", "p_click / bid", "may divide by zero"),
        ("within: 3", "witin: 3", "policy.yaml, line 9"),
        ("weight: 2", "weight: .nan", "line 6: objectives.revenue.weight: Input should be a finite number"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(file, bundle, monkeypatch, capsys, old, new, message):
    file.write_text(POLICY.replace(old, new))
    monkeypatch.setattr(sys, "argv", ["infnet", "policy", "check", str(file), "--bundle", str(bundle.path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
