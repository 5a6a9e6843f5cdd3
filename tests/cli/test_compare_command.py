import json
import sys

import pytest
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.policy import policy_app


@pytest.fixture
def files(tmp_path):
    for name, formula in (("up.yaml", "p_t0"), ("down.yaml", "1 - p_t0")):
        (tmp_path / name).write_text(f"objectives: {{first: {{formula: {formula}}}}}\n")
    return [str(tmp_path / "up.yaml"), str(tmp_path / "down.yaml")]


def arguments(files, run, *more):
    return ["compare", *files, "--run", str(run.path), "--reward", "t0", "--lists", "user", *more]


def invoke(*words):
    result = CliRunner().invoke(policy_app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_rows_that_were_shown_at_random_tell_what_both_would_have_earned(files, untrained_run):
    lines = invoke(*arguments(files, untrained_run)).splitlines()
    assert lines[0].endswith("lists of split 'random'; t0 per exposure, 95% intervals")
    assert lines[4].startswith("up.yaml")
    assert any(line.startswith("down.yaml beside up.yaml: ") for line in lines)
    found = json.loads(invoke(*arguments(files, untrained_run, "--json")))
    assert [one["file"] for one in found["policies"]] == ["up.yaml", "down.yaml"]
    assert found["same_choice"] == 0
    assert found["notes"] == []
    same = json.loads(invoke(*arguments([files[0]] * 2, untrained_run, "--json")))
    assert same["same_choice"] == 1
    assert same["difference"]["value"] == same["difference"]["low"] == same["difference"]["high"] == 0


def test_lists_that_leave_no_choice_count_for_nothing(files, untrained_run):
    with open(files[1], "a") as file:
        file.write("constraints: [{floor: p_t0, at_least: 1}]\n")
    for top in ("1", "20"):
        found = json.loads(invoke(*arguments(files, untrained_run, "--top", top, "--json")))
        assert found["same_choice"] == 0  # the second policy shows nothing at all
        assert found["policies"][1]["ips"]["value"] == 0


def test_rows_that_a_recommender_chose_are_no_ground_and_that_is_told(files, untrained_run):
    text = invoke(*arguments(files, untrained_run, "--split", "test"))
    assert "Rows of split 'test' were chosen by a recommender, and not at random: these estimates are biased" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "rnadom"], "has no split 'rnadom'; did you mean 'random'"),
        (["--reward", "t9"], "'t9' is no label of"),
        (["--top", "300"], "nothing to choose for its first 300; give a smaller --top, or --lists user"),
        (["--events", "events"], "wanted either --run, for logged rows, or --events"),
        (["--bundle", "bundle"], "--bundle has no meaning with --run; leave it out"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(files, untrained_run, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sys, "argv", ["infnet", "policy", *arguments(files, untrained_run, *more)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
