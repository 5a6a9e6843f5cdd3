"""Preparation of real KuaiRand-Pure rows; figures counted by hand with other tools."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infnet.data.dataset import Dataset
from infnet.data.prepare import prepare
from infnet.data.sources.known import known_spec
from raw_logs import Prepared

pytestmark = pytest.mark.slice

LIST_OF = {"impression": "watch_seq", "like": "like_seq", "long_view": "long_watch_seq"}
EVENTS = {"impression": pl.lit(True), "like": pl.col("is_like") == 1, "long_view": pl.col("long_view") == 1}


@pytest.fixture(scope="module")
def slice_path() -> Path:
    root = os.environ.get("INFNET_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
    path = Path(root) / "kuairand-pure-slice"
    if not path.exists():
        pytest.skip(f"the KuaiRand-Pure slice is not at {path}; set INFNET_DATA to the directory that holds it")
    return path


@pytest.fixture(scope="module")
def prepared(slice_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    out = tmp_path_factory.mktemp("slice") / "out"
    spec = known_spec("kuairand-pure").with_split(dt.date(2022, 5, 5), dt.date(2022, 5, 6)).with_delay(0)
    history = slice_path / "user_history_before_20220425.parquet"
    report = prepare(spec, slice_path, out, history=history, rows_per_partition=30_000)
    assert report.log.rows_kept == report.log.rows_read == 198_895
    return Prepared(out)


@pytest.fixture(scope="module")
def log(slice_path: Path) -> pl.DataFrame:
    return pl.read_csv(slice_path / "data" / "log_standard_4_22_to_5_08_pure.csv").with_row_index("line")


def test_splits_hold_the_days_of_beijing(prepared: Prepared, log: pl.DataFrame):
    day = pl.from_epoch("time_ms", "ms").dt.offset_by("8h").dt.date()
    counts = dict(log.group_by(day.clip(dt.date(2022, 5, 4), dt.date(2022, 5, 6))).len().sort("time_ms").iter_rows())
    manifest = Dataset.open(prepared.path).manifest
    assert list(manifest.splits.values()) == list(counts.values()) == [171_805, 13_372, 13_718]
    assert (manifest.num_users, manifest.num_items) == (27_285 + 1, 7_583 + 1)


def test_every_row_stands_in_its_split_with_its_labels(prepared: Prepared, log: pl.DataFrame):
    found = [
        (*row, *labels)
        for split in ("train", "valid", "test")
        for row, labels in zip(prepared.rows(split), prepared.array(f"{split}/labels").tolist(), strict=True)
    ]
    watch = (pl.col("play_time_ms") / 1000).clip(upper_bound=600).cast(pl.Float32).cast(pl.Float64)
    wanted = log.select(
        pl.col("user_id", "video_id").cast(pl.String),
        "time_ms",
        pl.col("is_click", "is_like", "long_view").cast(pl.Float64),
        watch,
    )
    assert sorted(found) == sorted(wanted.iter_rows())


def test_histories_of_some_rows_are_what_the_files_say(prepared: Prepared, log: pl.DataFrame, slice_path: Path):
    seeds = {
        row["user_id"]: row
        for row in pl.read_parquet(slice_path / "user_history_before_20220425.parquet").iter_rows(named=True)
    }
    by_user = (
        log.unique(set(log.columns) - {"line"}, keep="first")
        .sort("time_ms", "line")
        .partition_by("user_id", as_dict=True)
    )
    rng = np.random.default_rng(0)
    dataset = Dataset.open(prepared.path)
    for split in ("train", "valid", "test"):
        rows, users, ends = prepared.rows(split), prepared.array(f"{split}/user"), prepared.array(f"{split}/ends")
        for at in rng.integers(0, len(rows), 100):
            user, _, time = rows[at]
            seed = seeds.get(int(user))
            for column, (name, history) in enumerate(zip(EVENTS, dataset.histories, strict=True)):
                before = by_user[int(user),].filter(EVENTS[name], pl.col("time_ms") < time)
                wanted = [(row["time_ms"], str(row["video_id"])) for row in before.iter_rows(named=True)]
                if seed is not None and seed["last_time_ms"] < time:
                    wanted = [(seed["last_time_ms"], str(item)) for item in seed[LIST_OF[name]]] + wanted
                wanted.sort(key=lambda event: event[0])
                events = slice(history.starts[users[at]], ends[at, column])
                assert [prepared.items[i] for i in history.items[events]] == [item for _, item in wanted]


def test_repeated_rows_are_rows_but_one_event(prepared: Prepared, log: pl.DataFrame, slice_path: Path):
    distinct = log.drop("line").unique()
    seeds = pl.read_parquet(slice_path / "user_history_before_20220425.parquet")
    for name, condition in EVENTS.items():
        wanted = distinct.filter(condition).height + int(seeds[LIST_OF[name]].list.len().sum())
        assert len(prepared.array(f"history/{name}.items")) == wanted


def test_the_item_fields_of_a_video_are_its_columns(prepared: Prepared, slice_path: Path):
    video = pl.read_csv(slice_path / "data" / "video_features_basic_pure.csv", infer_schema=False).row(31, named=True)
    layout = Dataset.open(prepared.path).layout
    row = prepared.array("items/ids")[prepared.items.index(video["video_id"])]
    columns = layout.id_columns("item")
    for name in ("video_id", "author_id", "upload_type"):
        assert row[columns[name]].tolist() == [prepared.vocabulary(name)[video[name]]]
    tags = [prepared.vocabulary("tag")[tag] for tag in video["tag"].split(",")]
    assert row[columns["tag"]].tolist() == [*tags, *[-1] * (3 - len(tags))]


def test_hours_are_those_of_beijing(prepared: Prepared):
    layout = Dataset.open(prepared.path).layout
    first = next(v.first for v in layout.vocabularies if v.name == "hour")
    hours = prepared.array("test/context")[:, layout.id_columns("context")["hour"]][:, 0] - first - 2
    assert np.array_equal(hours, (prepared.array("test/time") // 3_600_000 + 8) % 24)
