from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec, known_specs
from infnet.errors import SpecError
from raw_logs import MAY_1, Prepared, prepare_frames

USER_COLUMNS = [
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
    *("follow_user_num", "follow_user_num_range", "fans_user_num", "fans_user_num_range"),
    *("friend_user_num", "friend_user_num_range", "register_days", "register_days_range"),
    *(f"onehot_feat{i}" for i in range(18)),
]
BASIC = {
    "author_id": 1, "video_type": "NORMAL", "upload_dt": "2022-04-10", "upload_type": "Web", "visible_status": 0.0,
    "video_duration": 9.5, "server_width": 720.0, "server_height": 1280.0, "music_id": 5, "music_type": 9.0,
    "tag": "3,5",
}  # fmt: skip


@pytest.mark.parametrize("name", known_specs())
def test_every_known_spec_loads(name: str):
    spec = known_spec(name)
    assert spec.name == name
    assert "{version}" not in spec.model_dump_json()
    assert "{file}" not in spec.model_dump_json()


@pytest.mark.parametrize("version", ["pure", "1k", "27k"])
def test_kuairand_has_the_papers_89_fields(version: str):
    names = [f.name for f in known_spec(f"kuairand-{version}").features]
    assert len(names) == len(set(names)) == 89
    without = known_spec(f"kuairand-{version}-nostats")
    assert len(without.features) == 39
    assert [f.name for f in without.features] == names[:39]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'kuairand-pure'"):
        known_spec("kuairand-pur")


def kuairand_files(version: str, folder: str) -> dict[str, pl.DataFrame]:
    """The official files of a version, with a few made-up rows each."""
    rows = 40
    log = pl.DataFrame(
        {"user_id": [u % 3 for u in range(rows)], "video_id": [v % 5 for v in range(rows)], "time_ms": [0] * rows}
        | {name: [i % 2 for i in range(rows)] for name in ("is_click", "is_like", "long_view")}
        | {"play_time_ms": [700_000] * rows, "tab": [1] * rows, "is_rand": [0] * rows}
    )
    # Six days to 2022-05-09 0:00 in Shanghai.
    times = MAY_1 + 7 * 86_400_000 - 8 * 3_600_000 + (np.arange(rows) - rows) * 3 * 3_600_000 + 86_400_000
    log = log.with_columns(time_ms=pl.Series(times))
    stats = [f.source for f in known_spec(f"kuairand-{version}").features[39:]]
    users = pl.DataFrame({"user_id": range(3)}).with_columns(pl.lit("x").alias(name) for name in USER_COLUMNS)
    basic = pl.DataFrame({"video_id": range(5)}).with_columns(pl.lit(value).alias(k) for k, value in BASIC.items())
    statistic = pl.DataFrame({"video_id": range(5)}).with_columns(pl.lit(1.5).alias(name) for name in stats)
    random = log.with_columns(is_rand=1)
    parts = {"pure": [""], "1k": [""], "27k": ["_part1", "_part2"]}[version]
    files = {
        f"user_features_{version}": users,
        f"video_features_basic_{version}": basic,
        f"log_random_4_22_to_5_08_{version}": random[-4:],
    }
    for number, part in enumerate(parts):
        span = slice(number * 20, None if number == len(parts) - 1 else (number + 1) * 20)
        files[f"log_standard_4_08_to_4_21_{version}{part}"] = log[span][:10]
        files[f"log_standard_4_22_to_5_08_{version}{part}"] = log[span][10:]
        half = slice(0, 2) if number == 0 and len(parts) > 1 else slice(2 if len(parts) > 1 else 0, None)
        files[f"video_features_statistic_{version}{part}"] = statistic[half]
    return {f"{folder}{name}.csv": frame for name, frame in files.items()}


@pytest.mark.parametrize("version", ["pure", "1k", "27k"])
@pytest.mark.parametrize("folder", ["", "data/", "KuaiRand/data/"])
def test_kuairand_is_read_in_the_official_layout(version: str, folder: str, tmp_path: Path):
    prepared, report = prepare_frames(known_spec(f"kuairand-{version}"), tmp_path, kuairand_files(version, folder))
    dataset = Dataset.open(prepared.path)
    assert list(dataset.manifest.splits) == ["train", "valid", "test", "random"]
    assert report.log.rows_kept == 44
    assert dataset.manifest.splits["random"] == 4
    assert dataset.layout.num_fields == 89
    assert dataset.layout.task_names == ("click", "like", "long_view", "watch_time")
    assert prepared.array("train/labels")[:, 3].max() == 600


@pytest.mark.parametrize("name", ["qk-video", "qb-video"])
def test_tenrec_is_read_without_a_clock(name: str, tmp_path: Path):
    rows = 60
    log = pl.DataFrame(
        {"user_id": [i % 3 for i in range(rows)], "item_id": [i % 7 for i in range(rows)]}
        | {label: [i % 2 for i in range(rows)] for label in ("click", "follow", "like", "share")}
        | {
            "video_category": [i % 7 % 2 for i in range(rows)],
            "watching_times": 1,
            "gender": [i % 3 for i in range(rows)],
            "age": 4,
        }
    )
    file = {"qk-video": "QK-video.csv", "qb-video": "QB-video.csv"}[name]
    prepared, report = prepare_frames(known_spec(name), tmp_path, {f"Tenrec/{file}": log})
    assert {split: part.rows for split, part in report.splits.items()} == {"train": 48, "valid": 6, "test": 6}
    assert isinstance(prepared, Prepared)
    assert sorted(prepared.vocabulary("gender")) == ["0", "1", "2"]
    place = Dataset.open(prepared.path).layout.id_columns("user")["gender"]
    genders = {row: text for text, row in prepared.vocabulary("gender").items()}
    assert [genders[row] for [row] in prepared.array("users/ids")[1:, place].tolist()] == ["0", "1", "2"]
