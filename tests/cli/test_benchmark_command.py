import json

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli.benchmark import benchmark_command
from infnet.errors import SpecError, TrainingError
from infnet.evaluation import benchmark as benchmark_module
from infnet.evaluation import series
from small_dataset import write_dataset

FAST = [
    *("--set", "model.width=4", "--set", "model.hidden=[8]", "--set", "train.batch_size=150"),
    *("--set", "train.threads=1", "--set", "train.tensorboard=false"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": 300, "valid": 150, "test": 150})


def invoke(*arguments):
    app = typer.Typer()
    app.command()(benchmark_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_command_compares_models_and_prints_what_it_writes(dataset, tmp_path):
    out = tmp_path / "board"
    arguments = (dataset.path, "--models", "shared_bottom", "--seeds", 1, "--out", out, *FAST)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((out / "leaderboard.json").read_text())
    assert f"{entry['mean']['auc']:.4f}" in result.stdout
    assert str(out / "leaderboard.md") in result.stdout.replace("\n", "")
    assert entry["cost"]["flops_per_row"] > 0
    assert entry["cost"]["request_ms"] > 0
    again = invoke(*arguments, "--json")
    assert json.loads(again.stdout) == [entry]


def test_a_failed_model_ends_the_command_with_1_after_the_table(dataset, tmp_path, monkeypatch):
    def train(*_, **__):
        raise TrainingError("the loss is nan after step 2")

    monkeypatch.setattr(series, "train", train)
    result = invoke(dataset.path, "--models", "shared_bottom", "--seeds", 1, "--out", tmp_path / "out", *FAST)
    assert result.exit_code == 1
    assert "Failed: shared_bottom, seed 0: the loss is nan after step 2" in result.stderr
    assert (tmp_path / "out" / "leaderboard.md").is_file()


def test_bad_input_is_one_line_and_writes_nothing(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_module, "Series", None)
    result = invoke(dataset.path, "--models", "sharedbottom", "--out", tmp_path / "out")
    assert isinstance(result.exception, SpecError)
    assert str(result.exception) == "--models: unknown model 'sharedbottom'; did you mean 'shared_bottom'?"
    assert not (tmp_path / "out").exists()
    assert invoke(dataset.path, "--seeds", 0, "--out", tmp_path / "out").exit_code == 2


def test_help_shows_an_example():
    assert "Example: infnet benchmark data/kuairand --models" in " ".join(invoke("--help").stdout.split())
