import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from infnet.cli.conflicts import conflicts_command
from infnet.errors import ArtifactError
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.conflicts import task_conflicts
from infnet.training.run import Run
from small_dataset import write_dataset


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", {"train": 200})


@pytest.fixture
def run(tmp_path, dataset):
    config = TrainConfig(model="infnet", settings={"width": 4}, batch_size=64)
    run = Run.create(tmp_path / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run


def invoke(*arguments):
    app = typer.Typer()
    app.command()(conflicts_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_table_names_every_pair_of_tasks(run, dataset):
    result = invoke(run.path, "--batches", 2)
    assert result.exit_code == 0, result.output
    for pair in task_conflicts(run, dataset, 2).pairs:
        (line,) = [line for line in result.stdout.splitlines() if f"{pair.first}, {pair.second}" in line]
        assert f"{pair.cosine:.3f}" in line
        assert f"{pair.opposed:.0%}" in line
    assert "2 training batches" in result.stdout


def test_json_is_the_report_and_nothing_else(run, dataset):
    result = invoke(run.path, "--json")
    assert json.loads(result.stdout) == task_conflicts(run, dataset).as_json()
    assert json.loads(result.stdout)["batches"] == 4  # all there are


def test_a_moved_dataset_is_given_by_data(run, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert isinstance(invoke(run.path).exception, ArtifactError)
    assert invoke(run.path, "--data", tmp_path / "elsewhere").exit_code == 0


def test_no_batches_are_bad_usage(run):
    assert invoke(run.path, "--batches", 0).exit_code == 2


def test_help_shows_an_example():
    assert "Example: infnet conflicts runs/first" in " ".join(invoke("--help").stdout.split())
