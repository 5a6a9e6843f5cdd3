import json

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli.train import train_command
from infnet.errors import SpecError
from infnet.training.run import Run
from small_dataset import write_dataset

SMALL = """
model: {name: shared_bottom, width: 4, hidden: [16], head_hidden: [8]}
train: {epochs: 2, batch_size: 64, learning_rate: 0.01, tensorboard: false, threads: 1}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def invoke(*arguments):
    app = typer.Typer()
    app.command()(train_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_command_trains_and_says_how_good_the_model_is_and_where_it_lies(dataset, config, tmp_path):
    out = tmp_path / "run"
    result = invoke(dataset.path, "--config", config, "--out", out, "--seed", 3, "--set", "model.width=8")
    assert result.exit_code == 0, result.output
    run = Run.load(out)
    assert (run.config.seed, run.config.settings["width"], run.config.epochs) == (3, 8, 2)
    assert f"{run.report['metrics']['t0_gauc']:.4f}" in result.stdout
    assert f"{run.report['metrics']['watch_r2']:.4f}" in result.stdout
    assert str(run.best_path) in result.stdout
    assert "20 steps, 1,200 rows" in result.stdout


def test_json_is_the_report_and_nothing_else(dataset, config, tmp_path):
    out = tmp_path / "run"
    result = invoke(dataset.path, "--config", config, "--out", out, "--epochs", 1, "--json")
    found = json.loads(result.stdout)
    assert found == {"run": str(out), "checkpoint": str(out / "best.safetensors"), **Run.load(out).report}
    assert found["steps"] == 10


def test_resume_needs_no_setting_again_and_takes_new_ones(dataset, config, tmp_path):
    out = tmp_path / "run"
    invoke(dataset.path, "--config", config, "--out", out, "--seed", 3)
    result = invoke(dataset.path, "--out", out, "--resume", "--epochs", 4, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 40
    assert Run.load(out).config.seed == 3
    result = invoke(dataset.path, "--out", out, "--resume", "--seed", 4)
    assert isinstance(result.exception, SpecError)
    assert "was begun with train.seed 3, asked to resume with 4" in str(result.exception)


def test_a_run_is_only_replaced_by_force(dataset, config, tmp_path):
    out = tmp_path / "run"
    invoke(dataset.path, "--config", config, "--out", out)
    result = invoke(dataset.path, "--config", config, "--out", out)
    assert isinstance(result.exception, SpecError)
    assert "--resume" in str(result.exception)
    assert invoke(dataset.path, "--config", config, "--out", out, "--epochs", 1, "--force").exit_code == 0
    assert Run.load(out).report["steps"] == 10
