import json

import numpy as np
import polars as pl
import pytest
import torch
import typer
from typer.testing import CliRunner

from infnet.cli.explain import explain_command
from infnet.errors import ArtifactError, SpecError
from infnet.models import build_model
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from small_dataset import NUM_ITEMS, NUM_USERS, write_dataset


def write_run(path, model="infnet", **settings):
    dataset = write_dataset(path / "data", {"valid": 60, "test": 80})
    for name, num in (("users", NUM_USERS), ("items", NUM_ITEMS)):
        pl.DataFrame({"key": [f"{name[0]}{i}" for i in range(1, num)]}).write_parquet(
            path / "data" / name / "keys.parquet"
        )
    config = TrainConfig(model=model, settings={"width": 8} | settings)
    run = Run.create(path / "run", dataset, config)
    torch.manual_seed(0)
    run.save_best(build_model(config.model, dataset.layout, config.settings), {})
    return run, dataset


@pytest.fixture
def made(tmp_path):
    return write_run(tmp_path)


def invoke(*arguments):
    app = typer.Typer()
    app.command()(explain_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def maps_of(out):
    return {(m["block"], m["source"]): m for m in json.loads((out / "attention.json").read_text())["maps"]}


def test_a_users_last_request_is_explained_with_the_items_it_read(made, tmp_path):
    run, dataset = made
    rows, out = dataset.rows("test"), tmp_path / "new" / "out"
    row = np.flatnonzero(rows.user == rows.user[40])[-1]
    result = invoke(run.path, "--user", f"u{rows.user[row]}", "--out", out)
    assert result.exit_code == 0, result.output
    maps = maps_of(out)
    wanted = []
    for behaviour, history in zip(dataset.layout.behaviours, dataset.histories, strict=True):
        items = history.items[history.starts[rows.user[row]] : rows.ends[row, 0]][::-1][: behaviour.length]
        wanted += [f"{behaviour.name} -{place} (item i{item})" for place, item in enumerate(items, start=1)]
    assert maps[1, "events"]["keys"] == wanted
    assert all(sum(weights) == pytest.approx(1) for found in maps.values() for weights in found["weights"])
    assert f"user u{rows.user[row]}, 1 request" in result.stdout
    best = maps[2, "fields"]["keys"][int(np.argmax(maps[2, "fields"]["weights"][0]))]
    assert best in result.stdout
    assert sorted(file.name for file in out.iterdir()) == ["attention.json", "events.png", "fields.png"]


def test_all_users_are_averaged_and_json_is_what_is_written(made, tmp_path):
    run, _ = made
    result = invoke(run.path, "--out", tmp_path / "out", "--average", 30, "--split", "valid", "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout == (tmp_path / "out" / "attention.json").read_text()
    assert json.loads(result.stdout)["title"] == "small valid, average of 30 requests"
    assert maps_of(tmp_path / "out")[1, "events"]["keys"][0] == "b0 -1"


def test_events_of_an_item_nobody_knew_are_unknown(made, tmp_path):
    run, dataset = made
    items = np.load(dataset.path / "history/b0.items.npy")
    np.save(dataset.path / "history/b0.items.npy", np.zeros_like(items))
    (dataset.path / "users/keys.parquet").unlink()
    assert invoke(run.path, "--out", tmp_path / "out", "--average", 1).exit_code == 0
    assert maps_of(tmp_path / "out")[1, "events"]["keys"][0] == "b0 -1 (item unknown)"


def test_a_dataset_without_keys_names_places_alone_and_knows_no_user(made, tmp_path):
    run, dataset = made
    for name in ("users", "items"):
        (dataset.path / name / "keys.parquet").unlink()
    assert invoke(run.path, "--out", tmp_path / "out", "--average", 1).exit_code == 0
    assert maps_of(tmp_path / "out")[1, "events"]["keys"][0] == "b0 -1"
    result = invoke(run.path, "--out", tmp_path / "out", "--user", "u3")
    assert isinstance(result.exception, ArtifactError)
    assert "no users/keys.parquet" in str(result.exception)


def test_a_user_who_is_not_there_is_named(made, tmp_path):
    run, dataset = made
    result = invoke(run.path, "--out", tmp_path, "--user", "nobody")
    assert isinstance(result.exception, SpecError)
    assert "--user nobody" in str(result.exception)
    absent = (set(range(1, NUM_USERS)) - set(dataset.rows("test").user.tolist())) | {NUM_USERS}
    pl.DataFrame({"key": [f"u{i}" for i in range(1, NUM_USERS + 1)]}).write_parquet(dataset.path / "users/keys.parquet")
    result = invoke(run.path, "--out", tmp_path, "--user", f"u{max(absent)}")
    assert "has no rows in split 'test'" in str(result.exception)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("shared_bottom", {}, "explain reads the attention of 'infnet', and this is a run of 'shared_bottom'"),
        ("infnet", {"attention": "mean"}, "attention 'mean', whose weights are all alike"),
    ],
)
def test_a_model_without_attention_has_nothing_to_explain(tmp_path, model, settings, message):
    run, _ = write_run(tmp_path, model, **settings)
    result = invoke(run.path, "--out", tmp_path / "out")
    assert isinstance(result.exception, SpecError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_pooled_histories_leave_the_fields_to_look_at(tmp_path):
    run, _ = write_run(tmp_path, history="pooled")
    out = tmp_path / "out"
    out.mkdir()
    (out / "events.png").write_text("of an earlier model")
    result = invoke(run.path, "--out", out)
    assert result.exit_code == 0, result.output
    assert {source for _, source in maps_of(out)} == {"fields"}
    assert sorted(file.name for file in out.iterdir()) == ["attention.json", "fields.png"]
