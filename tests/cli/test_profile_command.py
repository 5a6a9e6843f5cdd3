import json
import os
import sys

import pytest
import typer
from typer.testing import CliRunner

from infnet.cli import profile as module
from infnet.cli.profile import profile_command
from infnet.errors import ArtifactError, SpecError, TrainingError
from infnet.evaluation import profile as profiles
from infnet.evaluation.efficiency import measure_cost
from infnet.evaluation.growth import measure_growth
from infnet.evaluation.profile import profile_models
from infnet.models import INFNetConfig, model_names
from infnet.serving.profile import RequestCost
from infnet.training.config import TrainConfig
from small_bundle import small_bundle
from small_dataset import write_dataset

SMALL = ("--set", "model.hidden=[8]", "--set", "model.head_hidden=[4]", "--repeats", 1, "--candidates", 7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def small_growth():
    return measure_growth(INFNetConfig(width=4), num_events=(5, 10), num_fields=(6, 12), repeats=1)


def invoke(*arguments):
    app = typer.Typer()
    app.command()(profile_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_a_model_is_measured_in_a_process_of_its_own_and_reported_three_ways(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "measure_cost", None)  # of this process, which has to leave it alone
    out = tmp_path / "new"
    result = invoke("--dataset", dataset.path, "--model", "shared_bottom", *SMALL, "--batch-size", 64, "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "profile.json").read_text())
    cost = found["models"]["shared_bottom"]
    assert (found["batch_size"], found["num_candidates"], found["num_fields"]) == (64, 7, dataset.layout.num_fields)
    assert cost["embedding_parameters"] == dataset.layout.num_rows * 16
    assert f"{cost['request_ms']:,.1f}" in result.stdout
    assert f"| shared_bottom | {cost['dense_parameters'] / 1e6:,.3f} |" in (out / "profile.md").read_text()
    assert "(cost.png)" in (out / "profile.md").read_text()
    assert sorted(file.name for file in out.iterdir()) == ["cost.png", "profile.json", "profile.md"]


def test_a_view_of_a_dataset_is_what_is_measured(dataset):
    shorter = dataset.with_history_lengths([1, 1])
    config = TrainConfig(model="shared_bottom", settings={"width": 4, "hidden": (8,), "head_hidden": ()})
    found = profile_models(shorter, {"short": config}, num_candidates=3, repeats=1)
    assert found.seq_len == 2
    whole = measure_cost("shared_bottom", config.settings, dataset, num_candidates=3, repeats=1)
    assert found.models["short"].flops_per_row < whole.flops_per_row


def test_growth_needs_no_dataset(tmp_path, monkeypatch, small_growth):
    monkeypatch.setattr(module, "measure_growth", lambda repeats: small_growth)
    result = invoke("--growth", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"growth": small_growth.as_json()}
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "| fields | 6 to 12 | all pairs |" in (tmp_path / "profile.md").read_text()
    assert "| events | 5 to 10 | INFNet |" in invoke("--growth").stdout


def test_models_are_all_some_or_the_configurations(dataset, tmp_path, monkeypatch):
    asked = []

    def noted(dataset, configs, **options):
        asked.append({name: (config.model, config.settings) for name, config in configs.items()})
        raise TrainingError("enough")

    monkeypatch.setattr(module, "profile_models", noted)
    file = tmp_path / "config.yaml"
    file.write_text("model: {name: infnet, num_blocks: 3}\n")
    invoke("--dataset", dataset.path)
    invoke("--dataset", dataset.path, "--model", "infnet, shared_bottom")
    invoke("--dataset", dataset.path, "--config", file)
    everything, two, one = asked
    assert list(everything) == model_names()
    assert list(two) == ["infnet", "shared_bottom"]
    assert one == {"infnet": ("infnet", {"num_blocks": 3})}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --dataset DIR, --growth, or both"),
        (("--dataset", "{data}", "--model", "infent"), "unknown model 'infent'; did you mean 'infnet'"),
        (
            ("--dataset", "{data}", "--model", "infnet,shared_bottom", "--set", "model.num_blocks=3"),
            "model 'shared_bottom' has no setting 'num_blocks'",
        ),
        (("--dataset", "{data}", "--candidates", "1,2"), "several --candidates or --threads go with a bundle"),
        (("--growth", "--threads", "1,2"), "several --candidates or --threads go with a bundle"),
        (("{data}", "--growth"), "a bundle is measured by itself; leave out --dataset, --growth and --out"),
        (("{data}", "--candidates", "1,few"), "--candidates: found '1,few', wanted numbers from 1 on with commas"),
        (("{data}", "--threads", "0"), "--threads: found '0', wanted numbers from 1 on with commas"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(dataset, monkeypatch, arguments, message):
    monkeypatch.setattr(profiles, "ProcessPoolExecutor", None)
    result = invoke(*(str(argument).format(data=dataset.path) for argument in arguments))
    assert isinstance(result.exception, SpecError)
    assert message in str(result.exception)


def die(*_):
    os._exit(1)


def test_a_process_that_was_ended_is_one_line(dataset, monkeypatch):
    monkeypatch.setattr(profiles, "_measure", die)
    result = invoke("--dataset", dataset.path, "--model", "shared_bottom")
    assert isinstance(result.exception, TrainingError)
    assert "shared_bottom: the process that measured it was ended" in str(result.exception)


def test_without_matplotlib_there_are_no_figures(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke("--growth", "--out", tmp_path)
    assert isinstance(result.exception, SpecError)
    assert "pip install 'infnet[figures]'" in str(result.exception)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


def test_a_bundles_requests_are_measured_at_every_size_and_number_of_threads(bundle, monkeypatch):
    def measured(path, candidates, threads):
        assert path == bundle.path
        numbers = {"backend": "onnx", "p50_ms": 1.25, "p99_ms": 2.5, "requests_per_s": 700.0, "peak_mb": 321.4}
        return [RequestCost(candidates=size, threads=count, **numbers) for count in threads for size in candidates]

    monkeypatch.setattr(module, "profile_bundle", measured)
    result = invoke(bundle.path, "--candidates", "100,2000", "--threads", "1,2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(row["threads"], row["candidates"]) for row in found] == [(1, 100), (1, 2000), (2, 100), (2, 2000)]
    keys = {"candidates", "threads", "p50_ms", "p99_ms", "requests_per_s", "peak_mb", "backend"}
    assert all(row.keys() == keys for row in found)
    table = invoke(bundle.path)
    assert "small, infnet," in " ".join(table.stdout.split())
    assert table.stdout.split()[-6:] == ["500", "1", "1.25", "2.50", "700", "321"]


def test_what_is_no_bundle_is_not_measured(dataset):
    result = invoke(dataset.path)
    assert isinstance(result.exception, ArtifactError)
    assert "is no bundle" in str(result.exception)
