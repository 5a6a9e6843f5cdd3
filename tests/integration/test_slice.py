"""The journey on real data, where there is some: a slice of KuaiRand-Pure (Gao et al., CIKM 2022)."""

import json
import os
import sys
from pathlib import Path

import polars as pl
import pytest

from infnet.cli import main
from infnet.data.dataset import Dataset

ROOT = Path(__file__).parents[2]
SLICE = Path(os.environ.get("INFNET_DATA", ROOT.parent / "shared" / "data")) / "kuairand-pure-slice"
HISTORY = SLICE / "user_history_before_20220425.parquet"

pytestmark = [
    pytest.mark.slice,
    pytest.mark.skipif(
        not HISTORY.exists(), reason=f"no slice at {SLICE}; set INFNET_DATA to the directory that has it"
    ),
]


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["infnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    assert not caught.value.code


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("slice") / "prepared"
    dates = ("--valid-from", "2022-05-05", "--test-from", "2022-05-06")
    run("prepare", "kuairand-pure", "--raw", SLICE, "--history", HISTORY, *dates, "--out", out)
    return out


def test_the_dataset_is_what_the_log_and_its_history_hold(prepared):
    dataset = Dataset.open(prepared)
    assert dataset.manifest.splits == {"train": 171_805, "valid": 13_372, "test": 13_718}
    clicks = {split: int(dataset.rows(split).labels[:, 0].sum()) for split in dataset.manifest.splits}
    assert clicks == {"train": 76_144, "valid": 5_778, "test": 5_830}
    layout = dataset.layout
    assert layout.num_fields == 89
    assert layout.task_names == ("click", "like", "long_view", "watch_time")
    assert {b.name: b.length for b in layout.behaviours} == {"impression": 50, "like": 20, "long_view": 50}

    log = pl.read_csv(SLICE / "data" / "log_standard_4_22_to_5_08_pure.csv")
    seeds = pl.read_parquet(HISTORY, columns=["watch_seq", "like_seq", "long_watch_seq"])
    report = json.loads((prepared / "report.json").read_text())
    assert report["log"] == {"rows_read": log.height, "dropped": {}, "repeated": log.height - log.n_unique()}
    assert report["seeds"]["used"] == sum(column.list.len().sum() for column in seeds)
    assert report["events"]["like"] == log.unique()["is_like"].sum() + seeds["like_seq"].list.len().sum()


def test_one_epoch_ranks_clicks_and_long_views_far_better_than_chance(prepared, tmp_path):
    run(
        *("train", prepared, "--model", "infnet", "--out", tmp_path / "run", "--epochs", 1),
        *("--set", "train.batch_size=4096", "--set", "train.learning_rate=0.005", "--set", "train.tensorboard=false"),
        *("--set", "model.width=8"),
    )
    run("evaluate", tmp_path / "run", "--split", "test", "--json", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["counts"]["rows"] == 13_718
    for task in ("click", "long_view"):
        assert metrics["tasks"][task]["auc"] > 0.70
        assert metrics["tasks"][task]["gauc"] > 0.55
        assert 0.75 < metrics["tasks"][task]["pcoc"] < 1.35
    assert metrics["tasks"]["watch_time"]["r2"] > 0.05
