import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from infnet.cli.evaluate import evaluate_command
from infnet.errors import ArtifactError
from infnet.evaluation.evaluate import evaluate_run
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from small_dataset import write_dataset


@pytest.fixture
def run(tmp_path):
    dataset = write_dataset(tmp_path / "data", {"valid": 150, "test": 150})
    config = TrainConfig(model="shared_bottom")
    run = Run.create(tmp_path / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run


def invoke(*arguments):
    app = typer.Typer()
    app.command()(evaluate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_table_is_printed_and_the_same_numbers_are_written_as_json(run, tmp_path):
    file = tmp_path / "new" / "metrics.json"
    result = invoke(run.path, "--split", "valid", "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found == evaluate_run(run, "valid").as_json()
    assert "t0" in result.stdout
    assert f"{found['tasks']['t0']['gauc']:.4f}" in result.stdout
    assert [entry.name for entry in file.parent.iterdir()] == ["metrics.json"]


def test_a_moved_dataset_is_given_by_data(run, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert isinstance(invoke(run.path).exception, ArtifactError)
    assert invoke(run.path, "--data", tmp_path / "elsewhere", "--batch-size", 50).exit_code == 0


def test_what_is_no_run_is_refused(tmp_path):
    result = invoke(tmp_path)
    assert isinstance(result.exception, ArtifactError)
    assert "is no run" in str(result.exception)


def test_a_batch_of_no_rows_is_bad_usage(run):
    assert invoke(run.path, "--batch-size", 0).exit_code == 2


def test_help_shows_an_example():
    assert "Example: infnet evaluate runs/first" in " ".join(invoke("--help").stdout.split())
