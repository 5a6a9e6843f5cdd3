"""Every bad input stops with one line that names the place, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import polars as pl
import pytest

from infnet.data import partitions as partitions_module
from infnet.data import prepare as prepare_module
from infnet.data.arrays import ArrayWriter, filled_array
from infnet.data.prepare import prepare
from infnet.errors import DataError, InputError, SpecError
from raw_logs import BASE, DAY_MS, MAY_1, make_log, make_spec, prepare_frames, write
from small_disk import mounted, needs_mount


def message(kind: type[InputError], spec, directory: Path, frames: dict[str, pl.DataFrame | str], **options) -> str:
    """What preparing says, once it is sure that nothing is left of it."""
    for name, frame in frames.items():
        if isinstance(frame, str):
            (directory / "raw").mkdir(exist_ok=True)
            (directory / "raw" / name).write_text(frame)
        else:
            write(frame, directory / "raw" / name)
    before = sorted(directory.rglob("*"))
    with pytest.raises(kind) as caught:
        prepare(spec, directory / "raw", directory / "out", **options)
    assert sorted(directory.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_feature(side: str = "item", **feature):
    changes = {"features": [*BASE["features"], {"side": side, **feature}]}
    if side == "item":
        changes["item"] = {"key": "item", "parts": [["items*"]]}
    return make_spec(**changes)


def items(**columns) -> pl.DataFrame:
    return pl.DataFrame({"item": [10, 11, 12], **columns})


def edited(line: int, text: str) -> str:
    """The log as CSV with one line (from 1) replaced."""
    lines = make_log().write_csv().splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


def test_a_missing_file_is_named_by_pattern_and_directory(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"events.csv": make_log()})
    assert "raw: no file matches 'log*' (the log)" in found
    assert "found events.csv" in found


def test_a_missing_directory_is_named(tmp_path: Path):
    assert "raw: is no directory" in message(DataError, make_spec(), tmp_path, {})


def test_a_file_of_another_type_is_refused(tmp_path: Path):
    assert "log.json: unknown file type; wanted .csv" in message(DataError, make_spec(), tmp_path, {"log.json": "{}"})


def test_a_csv_cut_short_is_found_by_its_last_line(tmp_path: Path):
    text = make_log().write_csv().rstrip("\n").rsplit(",", 2)[0]
    found = message(DataError, make_spec(), tmp_path, {"log.csv": text})
    assert "log.csv, line 25: ends after 2 of 4 columns: the file is cut short" in found


def test_a_short_line_in_the_middle_is_found(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": edited(5, "1,10")})
    assert "log.csv, line 5: has 2 of 4 columns" in found


def test_a_line_with_too_many_fields_is_found(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": edited(5, "1,10,3,4,5")})
    assert "log.csv, line 5: has 5 fields where the header names 4 columns" in found


def test_a_quote_that_never_closes_is_found(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": edited(5, '1,"10,3,4')})
    assert "log.csv, line 5" in found


def test_quoted_commas_and_line_breaks_are_no_extra_fields(tmp_path: Path):
    log = make_log().with_columns(note=pl.lit('said "a, b"\nand left'))
    prepared, _ = prepare_frames(make_spec(), tmp_path, {"log.csv": log})
    assert len(prepared.rows("train")) == 8


def test_text_that_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "log.csv").write_bytes(edited(5, "1,10,3,é").encode("latin-1"))
    assert "log.csv: cannot be read as CSV" in message(DataError, make_spec(), tmp_path, {})


def test_an_empty_file_is_refused(tmp_path: Path):
    assert "log.csv: is empty" in message(DataError, make_spec(), tmp_path, {"log.csv": ""})


def test_a_log_without_rows_is_refused(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": "user,item,time_ms,click\n"})
    assert "log.csv: no row is left of 0" in found


def test_a_damaged_parquet_file_is_refused(tmp_path: Path):
    assert "cannot be read as Parquet" in message(DataError, make_spec(), tmp_path, {"log.parquet": "PAR1 and no more"})


def test_a_damaged_gzip_file_is_refused(tmp_path: Path):
    assert "log.csv.gz: cannot be read as CSV" in message(
        DataError, make_spec(), tmp_path, {"log.csv.gz": "plain text"}
    )


def test_files_of_one_log_need_the_same_columns(tmp_path: Path):
    frames = {"log_1.csv": make_log(), "log_2.csv": make_log().drop("click")}
    assert "log_2.csv: has no column 'click'" in message(DataError, make_spec(), tmp_path, frames)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"log": BASE["log"] | {"user": "usr"}}, "log.user: the log has no column 'usr'; did you mean 'user'?"),
        ({"log": BASE["log"] | {"time": "time"}}, "log.time: the log has no column 'time'; did you mean 'time_ms'?"),
        (
            {"behaviours": [{"name": "click", "filter": "clik == 1", "length": 3}]},
            "behaviour 'click': 'clik == 1' names the column 'clik', which does not exist; did you mean 'click'?",
        ),
        (
            {"behaviours": [{"name": "click", "filter": "click ==", "length": 3}]},
            "behaviour 'click': 'click ==' is no expression",
        ),
        ({"tasks": [{"name": "buy", "label": "sum(click)"}]}, "task 'buy': 'sum(click)' sums up many rows"),
        ({"tasks": [{"name": "buy", "label": "click AND"}]}, "task 'buy': 'click AND' is no expression"),
        ({"log": BASE["log"] | {"keep": "click == 'yes'"}}, "log.keep: 'click == 'yes'' does not fit the columns"),
        (
            {
                "features": [
                    *BASE["features"],
                    {"kind": "category", "name": "tabb", "column": "clicks", "side": "context"},
                ]
            },
            "feature 'tabb': the log has no column 'clicks'; did you mean 'click'?",
        ),
    ],
)
def test_a_spec_that_does_not_fit_the_columns_is_named_with_the_nearest(changes: dict, expected: str, tmp_path: Path):
    assert expected in message(SpecError, make_spec(**changes), tmp_path, {"log.csv": make_log()})


def test_a_feature_no_side_table_has_is_named_with_the_nearest(tmp_path: Path):
    spec = with_feature(kind="category", name="auther")
    found = message(SpecError, spec, tmp_path, {"log.csv": make_log(), "items.csv": items(author=[1, 2, 3])})
    assert "feature 'auther': the item table has no column 'auther'; did you mean 'author'? (items.csv)" in found


def test_a_list_where_one_value_is_wanted_is_a_matter_of_kind(tmp_path: Path):
    spec = with_feature(kind="category", name="tag")
    frames = {"log.parquet": make_log(), "items.parquet": items(tag=[[1], [2], [3]])}
    found = message(SpecError, spec, tmp_path, frames)
    assert "feature 'tag': column 'tag' is of type List(Int64), which kind 'category' cannot read" in found


def test_text_in_a_number_column_of_an_expression_is_named_by_line_and_value(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": edited(5, f"1,10,{MAY_1},often")})
    assert "log.csv, line 5: column 'click' is 'often', wanted a number" in found


@pytest.mark.parametrize(("suffix", "place"), [("csv", "line 8"), ("parquet", "row 7")])
def test_a_label_that_is_neither_0_nor_1_is_named_with_the_way_out(suffix: str, place: str, tmp_path: Path):
    log = make_log()
    log[6, "click"] = 3
    found = message(DataError, make_spec(), tmp_path, {f"log.{suffix}": log})
    assert f"log.{suffix}, {place}: label 'click' (click) is 3, wanted 0 or 1" in found
    assert "declare the task as regression or map it" in found


def test_the_file_is_named_where_a_log_has_several(tmp_path: Path):
    log = make_log()
    log[20, "click"] = 3
    frames = {f"log_{i}.csv": part for i, part in enumerate((log[:8], log[8:16], log[16:]))}
    assert "log_2.csv, line 6: label 'click'" in message(DataError, make_spec(), tmp_path, frames)


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        ({"kind": "number", "name": "x"}, ["1", "2", "many"], "line 4: column 'x' is 'many', wanted a number"),
        ({"kind": "value", "name": "x"}, ["1", "many", "2"], "line 3: column 'x' is 'many', wanted a number"),
        (
            {"kind": "vector", "name": "x", "width": 2},
            ["1,2", "1,2,3", "1,2"],
            "line 3: column 'x' has 3 numbers, wanted 2",
        ),
        (
            {"kind": "vector", "name": "x", "width": 2},
            ["1,2", "1,b", "1,2"],
            "line 3: column 'x' is '1,b', wanted 2 numbers",
        ),
        (
            {"kind": "age", "name": "x", "side": "candidate"},
            ["2022-01-01", "Easter", ""],
            "line 3: column 'x' is 'Easter', wanted a date such as 2022-04-10",
        ),
    ],
)
def test_an_item_value_that_does_not_fit_its_kind_is_named(feature: dict, values: list, expected: str, tmp_path: Path):
    spec = make_spec(
        features=[*BASE["features"], {"side": "item"} | feature], item={"key": "item", "parts": [["items.csv"]]}
    )
    found = message(DataError, spec, tmp_path, {"log.csv": make_log(), "items.csv": items(x=values)})
    assert f"items.csv, {expected}" in found


def test_a_context_value_that_does_not_fit_its_kind_is_named(tmp_path: Path):
    log = make_log().with_columns(x=pl.lit("1"))
    log[4, "x"] = "far"
    found = message(DataError, with_feature("context", kind="number", name="x"), tmp_path, {"log.csv": log})
    assert "log.csv, line 6: column 'x' is 'far', wanted a number" in found


def test_a_vector_of_another_width_in_parquet_is_named(tmp_path: Path):
    frames = {"log.parquet": make_log(), "items.parquet": items(x=[[1.0, 2.0], [1.0], [3.0, 4.0]])}
    found = message(DataError, with_feature(kind="vector", name="x", width=2), tmp_path, frames)
    assert "items.parquet, row 2: column 'x' has 1 numbers, wanted 2" in found


def test_an_empty_split_is_named_with_the_days_there_are(tmp_path: Path):
    spec = make_spec(split={"valid_from": "2022-05-02", "test_from": "2022-05-09"})
    found = message(DataError, spec, tmp_path, {"log.csv": make_log()})
    assert "split 'test' has no rows: the log covers 2022-05-01 to 2022-05-03 (UTC)" in found
    assert "valid_from 2022-05-02 and test_from 2022-05-09" in found


def test_a_key_without_a_row_in_its_table_is_named_with_both_ways_on(tmp_path: Path):
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, 11], "x": [1, 2]})}
    found = message(DataError, with_feature(kind="category", name="x"), tmp_path, frames)
    assert (
        "log.csv, line 3: item 12 has no row in the item table (items.csv), one of 1 such keys in 8 log rows" in found
    )
    assert "'missing: keep'" in found
    assert "'missing: drop'" in found


def test_dropping_every_row_is_an_error(tmp_path: Path):
    spec = make_spec(item={"key": "item", "parts": [["items.csv"]], "missing": "drop"})
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [99]})}
    assert "no row is left" in message(DataError, spec, tmp_path, frames)


def test_a_key_twice_with_different_values_is_named_by_both_lines(tmp_path: Path):
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, 11, 12, 11], "x": [1, 2, 3, 4]})}
    found = message(DataError, with_feature(kind="category", name="x"), tmp_path, frames)
    assert "items.csv, line 5: item 11 stands there again with other values than in items.csv, line 3" in found


def test_a_key_twice_with_the_same_values_is_one_entity(tmp_path: Path):
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, 11, 12, 11], "x": [1, 2, 3, 2]})}
    prepared, report = prepare_frames(with_feature(kind="category", name="x"), tmp_path, frames)
    assert report.items == 3
    assert set(prepared.vocabulary("x")) == {"1", "2", "3"}


def test_a_table_row_without_a_key_is_named(tmp_path: Path):
    frames = {"log.csv": make_log(), "items.csv": pl.DataFrame({"item": [10, None, 12], "x": [1, 2, 3]})}
    found = message(DataError, with_feature(kind="category", name="x"), tmp_path, frames)
    assert "items.csv, line 3: has no item" in found


def test_too_many_unreadable_rows_stop_with_the_first_and_their_share(tmp_path: Path):
    found = message(DataError, make_spec(), tmp_path, {"log.csv": edited(5, "1,10,soon,1")})
    assert "log.csv, line 5: no readable time_ms, as in 4.2% of the rows; wanted at most 1.0%" in found


def test_a_log_without_a_clock_has_no_hours(tmp_path: Path):
    spec = make_spec(
        log=BASE["log"] | {"time": None},
        split={"fractions": [0.2, 0.2]},
        features=[*BASE["features"], {"kind": "hour", "name": "hour"} | {"side": "context"}],
    )
    found = message(SpecError, spec, tmp_path, {"log.csv": make_log()})
    assert "feature 'hour' of kind hour reads the clock, but log.time is null" in found


def test_a_history_file_nobody_reads_is_refused(tmp_path: Path):
    write(pl.DataFrame({"user": [1], "last_time_ms": [0]}), tmp_path / "history.parquet")
    found = message(SpecError, make_spec(), tmp_path, {"log.csv": make_log()}, history=tmp_path / "history.parquet")
    assert "no behaviour names its column" in found


SEEDED = {"behaviours": [{"name": "click", "filter": "click == 1", "length": 3, "seed": "clicked"}]}


@pytest.mark.parametrize(
    ("history", "kind", "expected"),
    [
        ({"user": [1], "last_time_ms": [0], "clicks": [[1]]}, SpecError, "no column 'clicked'; did you mean 'clicks'?"),
        ({"user": [1], "time": [0], "clicked": [[1]]}, SpecError, "the history file has no column 'last_time_ms'"),
        (
            {"user": [1, 2], "last_time_ms": [0, None], "clicked": [[1], [1]]},
            DataError,
            "row 2: user 2 has no readable last_time_ms",
        ),
    ],
)
def test_a_history_file_that_does_not_fit_is_named(history: dict, kind, expected: str, tmp_path: Path):
    write(pl.DataFrame(history), tmp_path / "history.parquet")
    found = message(kind, make_spec(**SEEDED), tmp_path, {"log.csv": make_log()}, history=tmp_path / "history.parquet")
    assert expected in found


def test_a_missing_history_file_is_named(tmp_path: Path):
    found = message(DataError, make_spec(**SEEDED), tmp_path, {"log.csv": make_log()}, history=tmp_path / "nowhere")
    assert "nowhere: does not exist" in found


def test_a_failed_run_leaves_the_earlier_dataset_as_it_was(tmp_path: Path):
    prepared, _ = prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    before = prepared.files()
    with pytest.raises(DataError):
        prepare_frames(make_spec(), tmp_path, {"log.csv": make_log().with_columns(click=7)})
    assert prepared.files() == before


def interrupting(*_args, **_options):
    raise KeyboardInterrupt


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare_module, "write_requests", interrupting)
    write(make_log(), tmp_path / "raw" / "log.csv")
    with pytest.raises(KeyboardInterrupt):
        prepare(make_spec(), tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_disk_that_fills_up_while_arrays_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ArrayWriter, "append", full)
    found = message(DataError, make_spec(), tmp_path, {"log.csv": make_log()})
    assert "out: the disk is full" in found


def test_a_disk_that_fills_up_while_polars_writes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_args):
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    monkeypatch.setattr(partitions_module, "_write_partitions", full)
    assert "out: the disk is full" in message(DataError, make_spec(), tmp_path, {"log.csv": make_log()})


def test_an_array_is_allocated_before_it_is_mapped(tmp_path: Path):
    import numpy as np

    with filled_array(tmp_path / "x.npy", np.array([1, 2], np.int32), 1000) as mapped:
        blocks = (tmp_path / "x.npy").stat().st_blocks * 512
        assert blocks >= mapped.nbytes  # a sparse file would crash the process on a full disk instead


@needs_mount
@pytest.mark.parametrize("size_kb", [64, 300, 600, 1200])
def test_a_really_full_disk_stops_with_one_line_and_leaves_nothing(size_kb: int, tmp_path: Path):
    write(pl.concat([make_log()] * 2000).with_row_index("x"), tmp_path / "raw" / "log.csv")
    with mounted(tmp_path / "disk", f"size={size_kb}k"):
        with pytest.raises(DataError, match="out: the disk is full"):
            prepare(make_spec(), tmp_path / "raw", tmp_path / "disk" / "out")
        assert list((tmp_path / "disk").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    write(make_log(), tmp_path / "raw" / "log.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="out: cannot be written"):
        prepare(make_spec(), tmp_path / "raw", tmp_path / "file" / "out")


@needs_mount
def test_a_read_only_disk_is_named(tmp_path: Path):
    write(make_log(), tmp_path / "raw" / "log.csv")
    with (
        mounted(tmp_path / "disk", "ro"),
        pytest.raises(DataError, match="out: cannot be written: Read-only file system"),
    ):
        prepare(make_spec(), tmp_path / "raw", tmp_path / "disk" / "out")


def test_a_directory_without_the_right_to_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(**_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "out"))

    monkeypatch.setattr("infnet.data.workspace.tempfile.mkdtemp", denied)
    found = message(DataError, make_spec(), tmp_path, {"log.csv": make_log()})
    assert "out: cannot be written: Permission denied; give another --out or mend its rights" in found


def test_a_wrong_log_line_is_found_in_a_large_log_too(tmp_path: Path):
    # Several row groups and threads: the first bad line is still the first.
    log = pl.concat([make_log()] * 20_000).with_columns(time_ms=MAY_1 + pl.int_range(pl.len()) % (3 * DAY_MS))
    log[123_456, "click"] = 2
    log[400_000, "click"] = 2
    assert "log.csv, line 123458: label 'click'" in message(DataError, make_spec(), tmp_path, {"log.csv": log})
