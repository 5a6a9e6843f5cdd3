import json

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli.tune import tune_command
from infnet.errors import SpecError
from infnet.training.config import load_config
from small_dataset import write_dataset

SPACE = """
model: {width: [4, 8], num_blocks: [1, 2], hidden: [[16]]}
train: {threads: 1, batch_size: [64, 128], learning_rate: [1.0e-3, 1.0e+30]}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def options(dataset, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    return [dataset.path, "--model", "shared_bottom", "--space", file, "--out", tmp_path / "study"]


def invoke(*arguments):
    app = typer.Typer()
    app.command()(tune_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_it_says_what_was_found_beside_the_defaults_and_how_to_go_on(options, tmp_path):
    result = invoke(*options, "--trials", 4)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    assert f"{report['best']['value']:.4f}" in result.stdout
    assert f"{report['trials'][0]['value']:.4f}" in result.stdout
    assert "4 trials (" in result.stdout
    assert "Left out: model.num_blocks, model 'shared_bottom' has no such setting" in result.stdout
    assert f"infnet train {options[0]} --config {tmp_path / 'study' / 'best.yaml'}" in result.stdout
    assert load_config(tmp_path / "study" / "best.yaml").model == "shared_bottom"


def test_every_trial_has_a_line_on_stderr_and_json_is_the_report(options, tmp_path):
    result = invoke(*options, "--trials", 3, "--json")
    lines = [line for line in result.stderr.splitlines() if line.startswith("trial ")]
    assert [line.split(":")[0] for line in lines] == ["trial 0", "trial 1", "trial 2"]
    assert lines[0].endswith("defaults")
    assert result.stdout == (tmp_path / "study" / "report.json").read_text()
    assert json.loads(result.stdout)["best"]["number"] in (0, 1, 2)


def test_called_again_it_goes_on(options):
    invoke(*options, "--trials", 1)
    result = invoke(*options, "--trials", 2, "--json")
    assert [trial["number"] for trial in json.loads(result.stdout)["trials"]] == [0, 1]
    assert "trial 0:" not in result.stderr
    result = invoke(*options, "--trials", 2, "--seed", 1)
    assert isinstance(result.exception, SpecError)
    assert "holds a study of seed 0" in str(result.exception)


def test_no_trials_are_bad_usage(options):
    assert invoke(*options, "--trials", 0).exit_code == 2


def test_help_shows_an_example():
    assert "Example: infnet tune data/kuairand" in " ".join(invoke("--help").stdout.split())
