import json
import sys

import pytest
from typer.testing import CliRunner

from infnet.cli import main
from infnet.cli.policy import policy_app
from infnet.ranking.policy import Policy

POLICY = """
name: home
objectives:  # of both
  first: &one {formula: p_t0}
  time: {formula: watch / 10, weight: 0.5}
exploration: {share: 0.01}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def arguments(file, run, *more):
    out = file.parent / "out"
    common = ["frontier", file, "--objectives", "t0,watch", "--out", out, "--trials", 30, "--top", 3, "--run", run.path]
    return [str(each) for each in (*common, *more)]


def invoke(*words):
    result = CliRunner().invoke(policy_app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_front_is_shown_written_and_repeatable(file, untrained_run):
    words = arguments(file, untrained_run, "--keep", "watch=-5%")
    text = invoke(*words)
    out = file.parent / "out"
    assert "declared" in text
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"frontier.json", "frontier.png", "policy.kept.yaml"} <= set(first)
    assert f"Written: {out / 'frontier.json'}, {out / 'frontier.png'}" in text
    assert invoke(*words) == text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    found = json.loads(first["frontier.json"])
    assert json.loads(invoke(*words, "--json")) == found
    assert found["settings"] == {"range": 100, "trials": 30, "sampler": "nsga2", "seed": 0}
    assert len(found["trials"]) == 45
    assert set(found["versions"]) == {"infnet", "python", "optuna", "numpy"}
    assert found["users"] == {"choosing": 7, "reporting": 7}


def test_a_written_policy_is_the_file_with_other_weights(file, untrained_run):
    invoke(*arguments(file, untrained_run, "--keep", "watch=-5%"))
    out = file.parent / "out"
    found = json.loads((out / "frontier.json").read_text())
    declared, kept = (Policy.load(path, untrained_run.layout.tasks) for path in (file, out / "policy.kept.yaml"))
    weights = {name: each.weight for name, each in kept.spec.objectives.items()}
    assert weights == found["trials"][found["kept"]]["weights"]
    assert kept.version == declared.with_weights(weights).version
    assert (
        (out / "policy.kept.yaml").read_text().startswith("# policy.yaml with the weights of 'kept' of infnet policy")
    )


def test_a_choice_that_there_is_not_leaves_no_file(file, untrained_run):
    invoke(*arguments(file, untrained_run, "--keep", "watch=-5%"))
    assert "No point keeps watch at +900% or better" in invoke(*arguments(file, untrained_run, "--keep", "watch=900%"))
    assert not (file.parent / "out" / "policy.kept.yaml").exists()


@pytest.mark.parametrize(
    ("old", "new", "more", "message"),
    [
        ("", "", ["--objectives", "t0"], "--objectives 't0': is a single one; wanted two or more"),
        ("", "", ["--objectives", "t0,t0"], "wanted different names with commas between"),
        ("", "", ["--objectives", "t0,wacth"], "'wacth' is no label of"),
        ("", "", ["--objectives", "t0,wacth"], "did you mean 'watch'"),
        ("", "", ["--keep", "watch=much"], "--keep 'watch=much': 'much' is no change in percent"),
        ("", "", ["--keep", "t1=1%"], "'t1' is not among --objectives"),
        ("", "", ["--range", "1"], "--range: 1 is not between 1 and 1e6"),
        ("", "", ["--split", "tset"], "has no split 'tset'; did you mean 'test'"),
        ("", "", ["--top", "300"], "give a smaller --top, or --discounted"),
        ("", "", ["--events", "events"], "wanted either --run, for logged rows, or --events"),
        ("", "", ["--bundle", "bundle"], "--bundle has no meaning with --run; leave it out"),
        ("weight: 0.5", "weight: .nan", [], "line 5: objectives.time.weight: Input should be a finite number"),
        ("p_t0", "p_t7", [], "'p_t7' is neither a prediction nor declared under 'inputs'"),
        ("  time: {formula: watch / 10, weight: 0.5}\n", "", [], "has the objective 'first' alone"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(file, untrained_run, monkeypatch, capsys, old, new, more, message):
    file.write_text(POLICY.replace(old, new))
    monkeypatch.setattr(sys, "argv", ["infnet", "policy", *arguments(file, untrained_run, *more)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (file.parent / "out").exists()


def test_what_is_about_rows_has_no_meaning_for_pages(file, monkeypatch, capsys):
    words = ["frontier", str(file), "--objectives", "click,like", "--out", "out", "--events", "events", "--top", "3"]
    monkeypatch.setattr(sys, "argv", ["infnet", "policy", *words])
    with pytest.raises(SystemExit):
        main()
    assert "--top has no meaning with --events; leave it out" in capsys.readouterr().err
