from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from infnet.data.dataset import Dataset
from infnet.data.encoders import Encoder
from infnet.data.prepare import prepare
from infnet.errors import DataError
from infnet.schema import load_spec
from raw_logs import BASE, DAY_MS, MAY_1, Prepared, make_log, make_spec, prepare_frames

ALL_KINDS = {
    "timezone": "Asia/Shanghai",
    "user": {"key": "user", "parts": [["users*"]]},
    "item": {"key": "item", "parts": [["items*"], ["stats*"]]},
    "features": [
        {"kind": "id", "name": "user", "side": "user"},
        {"kind": "number", "name": "age", "side": "user", "buckets": 4},
        {"kind": "hour", "name": "hour", "side": "context"},
        {"kind": "category", "name": "tab", "side": "context"},
        {"kind": "value", "name": "temperature", "side": "context"},
        {"kind": "id", "name": "item", "side": "item"},
        {"kind": "category", "name": "author", "side": "item", "min_count": 2},
        {"kind": "category", "name": "shop", "side": "item", "hash_buckets": 8},
        {"kind": "tags", "name": "tag", "side": "item", "max_values": 2},
        {"kind": "value", "name": "price", "side": "item", "log": True},
        {"kind": "vector", "name": "cover", "side": "item", "width": 2},
        {"kind": "number", "name": "rank", "side": "candidate", "method": "log", "buckets": 4},
        {"kind": "age", "name": "item_age", "side": "candidate", "column": "born"},
    ],
    "behaviours": [{"name": "click", "filter": "click == 1", "length": 3, "fields": ["item", "author", "tag"]}],
    "tasks": [
        {"name": "click", "label": "click"},
        {"name": "watch", "label": "watch_ms / 1000.0", "kind": "regression", "clip": 5},
    ],
}


def all_kinds_frames(suffix: str) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng(0)
    rows = 300
    log = pl.DataFrame(
        {
            "user": rng.integers(1, 9, rows),
            "item": rng.integers(1, 13, rows),
            "time_ms": MAY_1 + rng.integers(0, 3 * DAY_MS, rows),
            "click": rng.integers(0, 2, rows),
            "watch_ms": rng.integers(0, 9000, rows),
            "tab": [None if tab == 0 else f"t{tab}" for tab in rng.integers(0, 4, rows)],
            "temperature": rng.integers(-5, 30, rows) / 2,
            "rank": rng.integers(1, 50, rows),
        }
    )
    users = pl.DataFrame({"user": range(1, 10), "age": [None, *range(20, 28)]})
    items = pl.DataFrame(
        {
            "item": range(1, 14),
            "author": [i // 3 for i in range(13)],
            "tag": ["3,5", "5", None, *["7"] * 10],
            "born": [f"2022-04-{day:02d}" for day in range(10, 23)],
            "price": [None, *(float(x) + 0.5 for x in range(12))],
        }
    )
    stats = pl.DataFrame(
        {
            "item": range(13, 0, -1),
            "shop": [f"s{i % 4}" for i in range(13)],
            "cover": [f"{i},{i * i}" for i in range(13)],
        }
    )
    if suffix == "parquet":
        items = items.with_columns(pl.col("tag").str.split(","), pl.col("born").str.to_date())
        stats = stats.with_columns(pl.col("cover").str.split(",").cast(pl.List(pl.Float32)))
    return {f"log.{suffix}": log, f"users.{suffix}": users, f"items.{suffix}": items, f"stats.{suffix}": stats}


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_frames(make_spec(**ALL_KINDS), tmp_path_factory.mktemp("all"), all_kinds_frames("csv"))[0]


def comparable(prepared: Prepared) -> dict[str, bytes]:
    return {name: content for name, content in prepared.files().items() if name != "report.json"}


def test_csv_and_parquet_give_the_same_bytes(all_kinds: Prepared, tmp_path: Path):
    other, _ = prepare_frames(make_spec(**ALL_KINDS), tmp_path, all_kinds_frames("parquet"))
    assert comparable(other) == comparable(all_kinds)


def test_preparing_twice_gives_the_same_bytes_but_for_the_report(all_kinds: Prepared, tmp_path: Path):
    again, _ = prepare_frames(make_spec(**ALL_KINDS), tmp_path, all_kinds_frames("csv"), rows_per_partition=11)
    assert comparable(again) == comparable(all_kinds)


def test_the_reader_opens_it_and_builds_batches(all_kinds: Prepared):
    dataset = Dataset.open(all_kinds.path)
    assert dataset.manifest.num_users == 10
    assert dataset.manifest.num_items == 14
    assert len(dataset.rows("train")) == dataset.manifest.splits["train"]
    assert sum(dataset.manifest.splits.values()) == 300
    assert dataset.rows("train").candidate.shape == (len(dataset.rows("train")), 2)


def test_the_stored_spec_is_the_spec(all_kinds: Prepared):
    assert load_spec(all_kinds.path / "spec.yaml") == make_spec(**ALL_KINDS)


def test_the_encoder_loaded_from_disk_encodes_as_preparation_did(all_kinds: Prepared):
    encoder, frames = Encoder.load(all_kinds.path), all_kinds_frames("csv")
    manifest = Dataset.open(all_kinds.path).manifest.layout
    items = (
        frames["items.csv"]
        .join(frames["stats.csv"], on="item")
        .sort(pl.col("item").cast(pl.String).str.len_bytes(), "item")
    )
    for name, place in manifest.id_columns("item").items():
        assert np.array_equal(encoder.encode(name, items[name]), all_kinds.array("items/ids")[1:, place]), name
    for name, place in manifest.dense_columns("item").items():
        assert np.array_equal(encoder.encode(name, items[name]), all_kinds.array("items/dense")[1:, place]), name
    keys = all_kinds.array("train/item")
    born, times = items["born"].to_list(), all_kinds.array("train/time")
    ages = encoder.encode("item_age", [born[key - 1] for key in keys], times.tolist())
    assert np.array_equal(ages, all_kinds.array("train/candidate")[:, manifest.id_columns("candidate")["item_age"]])
    hours = encoder.encode("hour", [None] * len(times), times.tolist())
    assert np.array_equal(hours, all_kinds.array("train/context")[:, manifest.id_columns("context")["hour"]])


def test_the_dates_that_ages_are_counted_from_are_kept_per_item(all_kinds: Prepared):
    kept, encoder = all_kinds.array("items/values/item_age"), Encoder.load(all_kinds.path)
    shanghai = dt.timezone(dt.timedelta(hours=8))
    born = [dt.datetime(2022, 4, 9 + int(key), tzinfo=shanghai).timestamp() * 1000 for key in all_kinds.items[1:]]
    assert kept.dtype == np.float64
    assert kept[1:].tolist() == born
    assert np.isnan(kept[0])
    feature, fitted = encoder.features["item_age"], encoder.fitted("item_age")
    place = Dataset.open(all_kinds.path).layout.id_columns("candidate")["item_age"]
    for split in ("train", "test"):
        pairs = zip(all_kinds.array(f"{split}/item"), all_kinds.array(f"{split}/time"), strict=True)
        ages = [feature.encode_at(kept[[item]], time, fitted)[0] for item, time in pairs]
        assert np.array_equal(ages, all_kinds.array(f"{split}/candidate")[:, place])


def test_an_encoder_reads_a_vocabulary_once_and_only_if_it_is_asked_for(
    all_kinds: Prepared, monkeypatch: pytest.MonkeyPatch
):
    read, read_parquet = [], pl.read_parquet
    monkeypatch.setattr(pl, "read_parquet", lambda path: read.append(path.stem) or read_parquet(path))
    encoder = Encoder.load(all_kinds.path)
    assert read == []
    assert encoder.encode("author", [1, 99]).tolist() == encoder.encode("author", ["1", "x"]).tolist()
    encoder.missing("item")
    assert read == ["author"]


def test_every_id_of_every_file_is_a_row_of_its_own_vocabulary(all_kinds: Prepared):
    layout = Dataset.open(all_kinds.path).layout
    ranges = {v.name: (v.first, v.first + v.size) for v in layout.vocabularies}
    borders = sorted(ranges.values())
    assert borders[0][0] == 1
    assert [high for _, high in borders[:-1]] == [low for low, _ in borders[1:]]
    assert borders[-1][1] == layout.num_rows
    files = {"user": ["users/ids"], "item": ["items/ids"]}
    files |= {side: [f"{split}/{side}" for split in ("train", "valid", "test")] for side in ("context", "candidate")}
    for field in layout.fields:
        if field.vocabulary is None:
            continue
        low, high = ranges[field.vocabulary]
        for file in files[field.side]:
            values = all_kinds.array(file)[:, layout.id_columns(field.side)[field.name]]
            assert ((low <= values) & (values < high) | (values == -1)).all(), field.name


def test_entity_zero_is_unknown_in_every_field(all_kinds: Prepared):
    layout = Dataset.open(all_kinds.path).layout
    first = {v.name: v.first for v in layout.vocabularies}
    for side in ("user", "item"):
        for name, place in layout.id_columns(side).items():
            field = next(f for f in layout.fields if f.name == name)
            assert all_kinds.array(f"{side}s/ids")[0, place].tolist() == [
                first[field.vocabulary],
                *[-1] * (field.width - 1),
            ]
    assert (all_kinds.array("items/dense")[0] == 0).all()


def test_regression_labels_are_clipped_and_described(all_kinds: Prepared):
    labels, task = all_kinds.array("train/labels")[:, 1], Dataset.open(all_kinds.path).layout.tasks[1]
    assert labels.max() == 5
    assert (task.mean, task.std) == pytest.approx((labels.mean(), labels.std()), rel=1e-5)


def test_the_fingerprint_changes_with_the_data(all_kinds: Prepared, tmp_path: Path):
    frames = all_kinds_frames("csv")
    frames["log.csv"] = frames["log.csv"].with_columns(click=1 - pl.col("click"))
    other, _ = prepare_frames(make_spec(**ALL_KINDS), tmp_path, frames)
    assert Dataset.open(other.path).manifest.fingerprint != Dataset.open(all_kinds.path).manifest.fingerprint


def test_nothing_is_learnt_from_after_training(tmp_path: Path):
    features = [
        *BASE["features"],
        {"kind": "category", "name": "author", "side": "item"},
        {"kind": "number", "name": "plays", "side": "item", "buckets": 2},
        {"kind": "value", "name": "price", "side": "item"},
        {"kind": "category", "name": "tab", "side": "context"},
        {"kind": "value", "name": "depth", "side": "candidate"},
    ]
    log = make_log().with_columns(tab=pl.lit("a"), depth=pl.lit(1.0))
    late = {"user": 3, "item": 13, "time_ms": MAY_1 + DAY_MS, "click": 1, "tab": "b", "depth": 9e9}
    log = pl.concat([log, pl.DataFrame([late, late | {"time_ms": MAY_1 + 2 * DAY_MS}])], how="vertical_relaxed")
    items = pl.DataFrame(
        {
            "item": [10, 11, 12, 13, 14],
            "author": list("xyzlw"),
            "plays": [1.0, 2.0, 3.0, 9e9, 9e9],
            "price": [1.0, 1.0, 1.0, 9e9, 9e9],
        }
    )
    spec = make_spec(features=features, item={"key": "item", "parts": [["items.csv"]]})
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": log, "items.csv": items})
    assert set(prepared.vocabulary("user")) == {"1", "2"}
    assert set(prepared.vocabulary("item")) == {"10", "11", "12"}
    assert set(prepared.vocabulary("author")) == {"x", "y", "z"}
    assert set(prepared.vocabulary("tab")) == {"a"}
    encoders = json.loads((prepared.path / "encoders.json").read_text())
    assert max(encoders["plays"]["state"]["edges"]) <= 3
    assert encoders["price"]["state"] == {"mean": 1.0, "std": 1.0}
    assert encoders["depth"]["state"] == {"mean": 1.0, "std": 1.0}
    unknown = encoders["author"]["first"]
    columns = Dataset.open(prepared.path).layout.id_columns("item")
    assert prepared.array("items/ids")[4:, columns["author"]].tolist() == [[unknown], [unknown]]
    assert report.splits["valid"].unknown_share["user"] == pytest.approx(1 / 9, abs=1e-4)
    assert report.splits["valid"].unknown_share["tab"] == pytest.approx(1 / 9, abs=1e-4)


def test_seed_events_count_as_training_for_their_items(tmp_path: Path):
    spec = make_spec(
        behaviours=[{"name": "click", "filter": "click == 1", "length": 3, "seed": "clicked"}],
        item={"key": "item", "parts": [["items.csv"]]},
    )
    history = pl.DataFrame({"user": [1, 8], "last_time_ms": [MAY_1 - 1] * 2, "clicked": [[13, 99], [10]]})
    tmp_path.joinpath("raw").mkdir()
    history.write_parquet(tmp_path / "history.parquet")
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, 11, 12, 13, 14]})}
    prepared, report = prepare_frames(spec, tmp_path, frames, history=tmp_path / "history.parquet")
    assert set(prepared.vocabulary("item")) == {"10", "11", "12", "13"}
    assert (report.seeds.used, report.seeds.unknown_item, report.seeds.unknown_user) == (1, 1, 1)
    assert prepared.histories("train", ["click"])[0] == [[("13", MAY_1 - 1)]]


def test_history_lists_in_csv_text_read_like_lists(tmp_path: Path):
    spec = make_spec(behaviours=[{"name": "click", "filter": "click == 1", "length": 3, "seed": "clicked"}])
    (tmp_path / "raw").mkdir()
    (tmp_path / "history.csv").write_text('user,last_time_ms,clicked\n1,1651363199999,"[11, 12]"\n2,1651363199999,\n')
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": make_log()}, history=tmp_path / "history.csv")
    assert prepared.histories("train", ["click"])[0] == [[("11", MAY_1 - 1), ("12", MAY_1 - 1)]]
    assert report.seeds.used == 2


def test_entities_of_both_the_table_and_the_log_exist_and_the_tableless_ones_are_missing_not_unknown(tmp_path: Path):
    spec = make_spec(
        item={"key": "item", "parts": [["items.csv"]], "missing": "keep"},
        features=[*BASE["features"], {"kind": "category", "name": "author", "side": "item"}],
    )
    items = pl.DataFrame({"item": [10, 11, 77], "author": list("xyz")})
    prepared, _ = prepare_frames(spec, tmp_path, {"log.csv": make_log(), "items.csv": items})
    assert prepared.items == ["?", "10", "11", "12", "77"]
    encoders, place = (
        json.loads((prepared.path / "encoders.json").read_text()),
        Dataset.open(prepared.path).layout.id_columns("item"),
    )
    assert prepared.array("items/ids")[3, place["author"]] == encoders["author"]["first"] + 1
    assert prepared.array("items/ids")[3, place["item"]] == prepared.vocabulary("item")["12"]


def test_rows_of_unlisted_entities_are_dropped_and_counted_if_the_spec_says_so(tmp_path: Path):
    spec = make_spec(item={"key": "item", "parts": [["items.csv"]], "missing": "drop"})
    prepared, report = prepare_frames(
        spec, tmp_path, {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, 11]})}
    )
    assert report.log.dropped == {"item not in its table": 8}
    assert report.log.rows_kept == sum(s.rows for s in report.splits.values()) == 16
    assert not any(item == "12" for split in ("train", "valid", "test") for _, item, _ in prepared.rows(split))


def test_without_a_table_an_entity_is_what_the_log_says_of_it_first(tmp_path: Path):
    features = [*BASE["features"], {"kind": "category", "name": "city", "side": "user"}]
    log = make_log().with_columns(city=pl.when(pl.col("user") == 1).then(pl.lit(None)).otherwise(pl.lit("Rome")))
    log = log.with_columns(
        city=pl.when(pl.col("time_ms") == MAY_1 + DAY_MS // 4)
        .then(pl.lit("Oslo"))
        .when(pl.col("time_ms") == MAY_1 + DAY_MS // 2)
        .then(pl.lit("Bonn"))
        .otherwise("city")
    )
    prepared, _ = prepare_frames(make_spec(features=features), tmp_path, {"log.csv": log})
    row = prepared.vocabulary("city")
    place = Dataset.open(prepared.path).layout.id_columns("user")["city"]
    assert prepared.array("users/ids")[1:, place][:, 0].tolist() == [row["Oslo"], row["Rome"]]


def test_days_begin_at_midnight_of_the_time_zone(tmp_path: Path):
    midnight = int(dt.datetime(2022, 5, 2, tzinfo=dt.timezone(dt.timedelta(hours=8))).timestamp() * 1000)
    times = [midnight - 1, midnight, midnight + DAY_MS - 1, midnight + DAY_MS]
    log = pl.DataFrame({"user": [1] * 4, "item": [10] * 4, "time_ms": times, "click": [0, 1, 0, 1]})
    prepared, _ = prepare_frames(make_spec(timezone="Asia/Shanghai"), tmp_path, {"log.csv": log})
    found = {split: [time for _, _, time in prepared.rows(split)] for split in ("train", "valid", "test")}
    assert found == {"train": times[:1], "valid": times[1:3], "test": times[3:]}


def test_summer_time_days_are_those_of_the_clock(tmp_path: Path):
    # In Berlin, 27 March 2022 had 23 hours.
    spring = int(dt.datetime(2022, 3, 26, 23, tzinfo=dt.UTC).timestamp() * 1000)
    times = [spring - 1, spring, spring + 23 * 3_600_000 - 1, spring + 23 * 3_600_000]
    log = pl.DataFrame({"user": [1] * 4, "item": [10] * 4, "time_ms": times, "click": [0, 1, 0, 1]})
    spec = make_spec(timezone="Europe/Berlin", split={"valid_from": "2022-03-27", "test_from": "2022-03-28"})
    prepared, _ = prepare_frames(spec, tmp_path, {"log.csv": log})
    assert [len(prepared.rows(split)) for split in ("train", "valid", "test")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("s", [MAY_1 // 1000 + day * 86_400 for day in range(3)]),
        ("s", [MAY_1 / 1000 + day * 86_400.0 for day in range(3)]),
        ("us", [MAY_1 * 1000 + day * DAY_MS * 1000 + 999 for day in range(3)]),
        ("text", ["2022-05-01 02:00:00", "2022-05-02T02:00:00", "2022-05-03T00:00:00Z"]),
    ],
)
def test_every_unit_of_time_is_read(unit: str, values: list, tmp_path: Path):
    log = pl.DataFrame({"user": [1] * 3, "item": [10] * 3, "when": values, "click": [0, 1, 0]})
    spec = make_spec(log=BASE["log"] | {"time": "when", "time_unit": unit}, timezone="Europe/Berlin")
    prepared, _ = prepare_frames(spec, tmp_path, {"log.csv": log})
    found = [prepared.rows(split)[0][2] for split in ("train", "valid", "test")]
    assert found == [MAY_1 + day * DAY_MS for day in range(3)]


def test_date_columns_of_parquet_are_times(tmp_path: Path):
    when = [dt.datetime(2022, 5, day, 2) for day in (1, 2, 3)]
    log = pl.DataFrame({"user": [1] * 3, "item": [10] * 3, "when": when, "click": [0, 1, 0]})
    spec = make_spec(log=BASE["log"] | {"time": "when"}, timezone="Europe/Berlin")
    prepared, _ = prepare_frames(spec, tmp_path, {"log.parquet": log})
    assert prepared.rows("train")[0][2] == MAY_1


def test_several_files_are_one_log(tmp_path: Path):
    log = make_log()
    spec = make_spec()
    whole, _ = prepare_frames(spec, tmp_path / "a", {"log.csv": log})
    pieces, _ = prepare_frames(spec, tmp_path / "b", {"log_2.csv": log[10:], "log_1.csv": log[:10]})
    assert comparable(pieces) == comparable(whole)


def test_rows_are_kept_by_expression_and_counted(tmp_path: Path):
    spec = make_spec(log=BASE["log"] | {"keep": "item <> 10"})
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": make_log()})
    assert report.log.dropped == {"not kept": 8}
    assert "10" not in prepared.items


def test_missing_labels_stay_missing(tmp_path: Path):
    spec = make_spec(
        tasks=[{"name": "click", "label": "click"}, {"name": "bought", "label": "CASE WHEN click = 1 THEN bought END"}]
    )
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": make_log().with_columns(bought=pl.lit(1))})
    labels = prepared.array("train/labels")
    assert np.array_equal(np.isnan(labels[:, 1]), labels[:, 0] == 0)
    assert report.splits["train"].labelled == {"click": 8, "bought": 4}


def test_true_and_false_are_labels(tmp_path: Path):
    log = make_log().with_columns(click=pl.col("click") == 1)
    spec = make_spec(behaviours=[{"name": "click", "filter": "click", "length": 3}])
    from_csv, _ = prepare_frames(spec, tmp_path / "a", {"log.csv": log})
    from_parquet, _ = prepare_frames(spec, tmp_path / "b", {"log.parquet": log})
    assert comparable(from_csv) == comparable(from_parquet)
    assert from_csv.array("train/labels").mean() == 0.5


def test_columns_named_like_our_own_do_not_collide(tmp_path: Path):
    log = make_log().with_columns(keep=pl.lit(1), extra=pl.lit(7), problem=pl.lit(2), time=pl.lit(3), index=pl.lit(4))
    spec = make_spec(
        log=BASE["log"] | {"keep": "keep == 1 AND extra == 7 AND problem == 2 AND time == 3 AND item > 0"},
        features=[
            *BASE["features"],
            *({"kind": "category", "name": n, "side": "user"} for n in ("keep", "time", "index", "extra")),
        ],
    )
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": log})
    assert report.log.rows_kept == 24
    assert list(prepared.vocabulary("time")) == ["3"]
    assert list(prepared.vocabulary("extra")) == ["7"]


def test_compressed_windows_and_marked_csv_files_read_alike(tmp_path: Path):
    import gzip

    text = make_log().write_csv()
    (tmp_path / "raw").mkdir()
    variants = {
        "log_1.csv.gz": gzip.compress(text.encode(), mtime=0),
        "log_2.csv": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "log_3.csv": text.encode().rstrip(b"\n"),
        "log_4.csv": text.replace("\n", "\n\n").encode(),
    }
    results = []
    for name, content in variants.items():
        (tmp_path / "raw" / name).write_bytes(content)
        prepare(make_spec(log=BASE["log"] | {"files": [name]}), tmp_path / "raw", tmp_path / "out")
        found = comparable(Prepared(tmp_path / "out"))
        results.append({key: value for key, value in found.items() if key.endswith(".npy")})
    assert all(result == results[0] for result in results)


def test_unreadable_rows_are_counted_by_reason_and_a_sample_is_set_aside(tmp_path: Path):
    log = make_log().with_columns(pl.col("user").cast(pl.String), pl.col("time_ms").cast(pl.String))
    log[3, "user"], log[5, "time_ms"] = None, "soon"
    spec = make_spec(log=BASE["log"] | {"max_bad_fraction": 0.1})
    prepared, report = prepare_frames(spec, tmp_path, {"log.csv": log})
    assert report.log.dropped == {"no user": 1, "no readable time_ms": 1}
    assert report.log.rows_kept == 22
    aside = pl.read_parquet(prepared.path / "quarantine.parquet")
    assert aside.rows(named=True)[1] == {
        "where": "log.csv, line 7",
        "problem": "no readable time_ms",
        "user": "1",
        "item": str(log[5, "item"]),
        "time_ms": "soon",
    }


def test_an_earlier_dataset_is_replaced_and_nothing_else_is_left(tmp_path: Path):
    prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    (tmp_path / "out" / "left_over").write_text("old")
    prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    assert not (tmp_path / "out" / "left_over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_another_directory_is_never_replaced(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"out: exists and was not made by this command"):
        prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_progress_names_every_stage_and_reaches_its_end(tmp_path: Path):
    seen: dict[str, list[float]] = {}
    _, report = prepare_frames(
        make_spec(),
        tmp_path,
        {"log.csv": make_log()},
        progress=lambda stage, share: seen.setdefault(stage, []).append(share),
    )
    assert list(seen) == list(report.seconds)
    assert all(shares[0] == 0 and shares[-1] == 1 for shares in seen.values())


def test_the_report_is_stored_and_can_be_shown(tmp_path: Path):
    from rich.console import Console

    prepared, report = prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    assert json.loads((prepared.path / "report.json").read_text()) == json.loads(report.model_dump_json())
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(report.as_tables())
    assert "click rate" in console.export_text()
    visible = [min(3, len(events)) for [events] in prepared.histories("test", ["click"])]
    assert report.splits["test"].history_mean["click"] == pytest.approx(np.mean(visible), abs=1e-4)
    assert report.splits["test"].positives == {"click": int(prepared.array("test/labels").sum())}
