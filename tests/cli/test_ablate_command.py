import json

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli.ablate import ablate_command
from infnet.errors import SpecError
from small_dataset import write_dataset

FAST = [
    *("--set", "model.width=4", "--set", "model.head_hidden=[4]", "--set", "train.batch_size=150"),
    *("--set", "train.threads=1", "--set", "train.tensorboard=false"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": 300, "valid": 150, "test": 150})


def invoke(*arguments):
    app = typer.Typer()
    app.command()(ablate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_command_compares_variants_and_prints_what_it_writes(dataset, tmp_path):
    out = tmp_path / "out"
    arguments = (dataset.path, "--only", "late-fusion", "--seeds", 1, "--out", out, *FAST)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((out / "ablation.json").read_text())
    for variant in written["variants"]:
        assert f"{variant['runs'][0]['mean']['auc']:.4f}" in result.stdout
        assert variant["name"] in result.stdout
    assert json.loads(invoke(*arguments, "--json").stdout) == written


def test_bad_input_is_one_line_and_writes_nothing(dataset, tmp_path):
    result = invoke(dataset.path, "--only", "late_fusion", "--out", tmp_path / "out")
    assert isinstance(result.exception, SpecError)
    assert str(result.exception) == "--only: unknown variant 'late_fusion'; did you mean 'late-fusion'?"
    assert not (tmp_path / "out").exists()


def test_help_shows_an_example():
    assert "Example: infnet ablate data/kuairand --only" in " ".join(invoke("--help").stdout.split())
