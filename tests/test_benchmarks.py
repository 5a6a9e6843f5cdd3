import json
import re
import statistics
from datetime import date

import pytest

import accuracy
import batches
import pacing
import training_speed
from filled_dataset import write_filled_dataset
from infnet.data.sources.known import known_spec
from infnet.errors import SpecError
from infnet.training.run import Run
from small_dataset import write_dataset


@pytest.fixture(autouse=True)
def free_cores(monkeypatch):
    for script in (batches, training_speed):
        monkeypatch.setattr(script, "use_one_core", lambda: None)


def cells(printed):
    """Rows of the printed table under its headings."""
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_the_filled_dataset_has_the_promised_shape_and_full_histories(tmp_path):
    dataset = write_filled_dataset(tmp_path, 500, num_users=40, num_items=30)
    assert (dataset.layout.num_fields, dataset.layout.seq_len) == (60, 150)
    (batch,) = dataset.batches("train", 500)
    assert batch.history_present.all()
    assert batch.rows.max() < dataset.layout.num_rows
    assert len(batch.user_index.unique()) > 30


def test_batches_are_timed_in_both_orders(capsys):
    batches.main(["--rows", "2000", "--passes", "2", "--batch-size", "512"])
    found = cells(capsys.readouterr().out)
    assert [row["order of the rows"] for row in found] == ["shuffled", "own"]
    assert all(int(row["rows/s, median"].replace(",", "")) > 0 for row in found)


def test_all_models_take_turns_in_training_and_scoring(tmp_path, capsys):
    dataset = write_dataset(tmp_path)
    training_speed.main([str(dataset.path), "--batch-size", "64", "--windows", "3", "--steps", "2"])
    printed = capsys.readouterr().out
    found = {row["model"]: row for row in cells(printed)}
    assert list(found) == ["shared_bottom", "infnet", "ple"]
    for row in found.values():
        assert all(int(row[rate].replace(",", "")) > 0 for rate in ("training, rows/s", "scoring, rows/s"))
    ratios = [line.split() for line in printed.splitlines() if line.startswith("infnet trains")]
    assert [words[8].rstrip(",") for words in ratios] == ["shared_bottom", "ple"]
    assert all(float(words[2]) > 0 and float(words[11]) > 0 for words in ratios)


def test_fields_are_cut_from_the_statistics_alone():
    spec = training_speed.kuairand_of(60, date(2022, 5, 5), date(2022, 5, 6))
    kept = {feature.name for feature in spec.features}
    assert len(spec.features) == 60
    assert kept > {feature.name for feature in known_spec("kuairand-pure-nostats").features}
    with pytest.raises(SpecError, match="wanted 39 to 89"):
        training_speed.kuairand_of(20, date(2022, 5, 5), date(2022, 5, 6))


def test_accuracy_is_the_mean_over_seeds_and_trains_nothing_twice(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "data", {"train": 300, "valid": 150, "test": 150})
    setting = tmp_path / "tiny.yaml"
    setting.write_text(
        "model: {name: shared_bottom, width: 4, hidden: [8], head_hidden: [4]}\n"
        "train: {epochs: 1, batch_size: 64, learning_rate: 0.01, tensorboard: false}\n"
    )
    command = [str(dataset.path), "--out", str(tmp_path / "out"), "--settings", str(setting), "--seeds", "3", "5"]
    accuracy.main(command)
    (row,) = cells(capsys.readouterr().out)
    results = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert [(r["model"], r["seed"]) for r in results] == [("tiny", 3), ("tiny", 5)]
    aucs = [r["tasks"]["t0"]["auc"] for r in results]
    assert row["t0 AUC"] == f"{statistics.mean(aucs):.4f} ± {statistics.stdev(aucs):.4f}"
    assert list(row) == ["setting", "t0 AUC", "t0 gAUC", "t1 AUC", "t1 gAUC", "watch R2", "mean AUC", "mean gAUC"]
    best = tmp_path / "out" / "tiny-seed3" / "best.safetensors"
    before = best.stat().st_mtime_ns
    accuracy.main(command)
    assert cells(capsys.readouterr().out) == [row]
    assert best.stat().st_mtime_ns == before
    assert Run.load(best.parent).report["epochs"] == 1


def test_what_is_undefined_in_one_run_has_no_mean():
    assert accuracy.cell([0.5, None]) == "undefined"
    assert re.fullmatch(r"0\.5000", accuracy.cell([0.5]))


def test_paced_budgets_last_the_day_and_others_do_not(capsys):
    pacing.main(["--requests", "1200", "--methods", "none", "bid"])
    found = {row["until hour"]: row for row in cells(capsys.readouterr().out)}
    assert len(found) == 24
    spent = {name: [float(row[f"{name}: spent"].rstrip("%")) for row in found.values()] for name in ("none", "bid")}
    assert spent["none"][17] > 98
    assert spent["bid"][17] < 75
    assert 90 < spent["bid"][-1] < 103
