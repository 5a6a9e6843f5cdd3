import json

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from infnet.cli.evaluate import evaluate_command
from infnet.data.dataset import Dataset
from infnet.data.layout import FORMAT_VERSION, Manifest
from infnet.errors import ArtifactError
from infnet.evaluation.evaluate import evaluate_run
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from random_batches import make_layout

NUM_USERS, NUM_ITEMS, NUM_ROWS = 9, 12, 150


def write_dataset(path, fingerprint="a" * 64, seed=0):
    """A prepared dataset of random rows, in the files the manifest promises."""
    rng = np.random.default_rng(seed)
    layout = make_layout(tasks=3, regression=True)

    def write(name, array):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / name, array)

    def ids(num, side):
        return rng.integers(0, layout.num_rows, (num, layout.id_width(side)), dtype=np.int32)

    write("users/ids.npy", ids(NUM_USERS, "user"))
    write("items/ids.npy", ids(NUM_ITEMS, "item"))
    for behaviour in layout.behaviours:
        write(f"history/{behaviour.name}.starts.npy", np.arange(NUM_USERS + 1, dtype=np.int64) * 4)
        write(f"history/{behaviour.name}.items.npy", rng.integers(1, NUM_ITEMS, NUM_USERS * 4, dtype=np.int32))
        write(f"history/{behaviour.name}.times.npy", np.tile(np.arange(4), NUM_USERS).astype(np.int64))
    for split in ("valid", "test"):
        users = np.sort(rng.integers(1, NUM_USERS, NUM_ROWS)).astype(np.int32)
        labels = (rng.random((NUM_ROWS, 3)) < 0.4).astype(np.float32)
        labels[:, 2] *= 30
        labels[::7, 1] = np.nan
        write(f"{split}/user.npy", users)
        write(f"{split}/item.npy", rng.integers(1, NUM_ITEMS, NUM_ROWS, dtype=np.int32))
        write(f"{split}/time.npy", np.arange(NUM_ROWS, dtype=np.int64) + 100)
        write(f"{split}/labels.npy", labels)
        write(f"{split}/ends.npy", np.repeat(users[:, None].astype(np.int64) * 4 + 4, 2, axis=1))
        write(f"{split}/context.npy", ids(NUM_ROWS, "context"))
        write(f"{split}/candidate.npy", ids(NUM_ROWS, "candidate"))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        package_version="0",
        name="random",
        layout=layout,
        num_users=NUM_USERS,
        num_items=NUM_ITEMS,
        splits={"valid": NUM_ROWS, "test": NUM_ROWS},
        fingerprint=fingerprint,
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return Dataset.open(path)


@pytest.fixture
def run(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    config = TrainConfig(model="shared_bottom")
    run = Run.create(tmp_path / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run


def test_a_run_is_judged_on_every_row_of_the_split(run):
    found = evaluate_run(run, "test").as_json()
    assert found["counts"]["rows"] == NUM_ROWS
    assert found["counts"]["tasks"]["t0"]["rows"] == NUM_ROWS
    assert found["counts"]["tasks"]["t1"]["rows"] == NUM_ROWS - len(range(0, NUM_ROWS, 7))
    assert 0 <= found["mean"]["auc"] <= 1


def test_batch_size_changes_no_metric(run):
    whole = evaluate_run(run, "test", batch_size=1000).as_flat()
    # One row's score may move by a rounding with the shape of the products, so AUC by less than a pair.
    assert evaluate_run(run, "test", batch_size=7).as_flat() == pytest.approx(whole, rel=1e-4)


def test_splits_differ(run):
    assert evaluate_run(run, "valid").as_json() != evaluate_run(run, "test").as_json()


def test_progress_ends_at_all_rows(run):
    seen = []
    evaluate_run(run, "test", batch_size=64, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, NUM_ROWS), (128, NUM_ROWS), (NUM_ROWS, NUM_ROWS)]


def test_a_moved_dataset_is_found_where_it_is_said_to_be(run, tmp_path):
    before = evaluate_run(run, "test")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="say where with --data DIR"):
        evaluate_run(run, "test")
    assert evaluate_run(run, "test", data=tmp_path / "elsewhere") == before


def test_another_dataset_is_refused(run, tmp_path):
    write_dataset(tmp_path / "other", fingerprint="b" * 64)
    with pytest.raises(ArtifactError, match="fingerprint bbbb"):
        evaluate_run(run, "test", data=tmp_path / "other")


def test_an_unknown_split_is_refused_with_a_suggestion(run):
    with pytest.raises(ArtifactError, match="did you mean 'test'"):
        evaluate_run(run, "tests")


def invoke(*arguments):
    app = typer.Typer()
    app.command()(evaluate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


def test_the_command_prints_the_table_and_writes_the_same_numbers_as_json(run, tmp_path):
    file = tmp_path / "new" / "metrics.json"
    result = invoke(run.path, "--split", "valid", "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found == evaluate_run(run, "valid").as_json()
    assert "t0" in result.stdout
    assert f"{found['tasks']['t0']['gauc']:.4f}" in result.stdout
    assert [entry.name for entry in file.parent.iterdir()] == ["metrics.json"]


def test_the_command_refuses_what_is_no_run(tmp_path):
    result = invoke(tmp_path)
    assert isinstance(result.exception, ArtifactError)
    assert "is no run" in str(result.exception)
