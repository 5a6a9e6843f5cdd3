from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.data.splits import SplitRule
from infnet.errors import DataError
from infnet.schema import Split
from raw_logs import BASE, MAY_1, make_log, make_spec, prepare_frames

times_of_users = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 15)), min_size=1, max_size=60).map(sorted)


def codes_of(split: Split, users: list[int], times: list[int], extra: list[int] | None = None) -> np.ndarray:
    user, time, row = np.array(users, np.int32), np.array(times), np.arange(len(users))
    extra_codes = np.array(extra or [0] * len(users), np.int8)
    rule = SplitRule(split, "UTC", lambda: time[extra_codes == 0])
    return rule.codes(user, time, row, extra_codes)


def test_fractions_take_the_newest_rows():
    codes = codes_of(Split(fractions=(0.2, 0.3)), [1] * 10, list(range(10)))
    assert codes.tolist() == [0] * 5 + [1] * 2 + [2] * 3


@given(times_of_users)
def test_fractions_never_part_rows_of_one_time_nor_put_older_ones_later(rows):
    users, times = zip(*rows, strict=True)
    codes = codes_of(Split(fractions=(0.2, 0.2)), users, times)
    by_time = {time: set(codes[np.array(times) == time].tolist()) for time in sorted(set(times))}
    assert all(len(found) == 1 for found in by_time.values())
    assert (np.diff([found.pop() for found in by_time.values()]) >= 0).all()


@given(times_of_users)
def test_each_user_has_fractions_of_his_own_rows(rows):
    users, times = (np.array(column) for column in zip(*rows, strict=True))
    codes = codes_of(Split(fractions=(0.2, 0.2), per_user=True), users, times)
    for user in set(users.tolist()):
        own, when = codes[users == user], times[users == user]
        assert own[0] == 0
        assert (np.diff(own) >= 0).all()
        assert all(len(set(own[when == time].tolist())) == 1 for time in set(when.tolist()))
        if len(set(when.tolist())) == len(own):
            assert (own == 2).sum() == int(len(own) * 0.2 + 1e-6)


def test_random_fractions_are_near_what_was_asked_and_the_same_again():
    users, times = [1] * 20_000, list(range(20_000))
    split = Split(fractions=(0.1, 0.2), random=True)
    codes = codes_of(split, users, times)
    assert np.bincount(codes) / 20_000 == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert np.array_equal(codes, codes_of(split, users, times))
    assert len(set(codes[:100].tolist())) == 3  # and not by time


def test_extra_splits_take_their_rows_whenever_they_are_and_count_for_no_fraction():
    split = Split(fractions=(0.25, 0.25), extra={"a": "x", "b": "y"})
    codes = codes_of(split, [1] * 8, list(range(8)), [1, 0, 0, 2, 0, 0, 1, 2])
    assert codes.tolist() == [3, 0, 0, 4, 1, 2, 3, 4]


def test_extra_rows_are_in_no_other_split_and_the_first_that_matches_wins(tmp_path: Path):
    split = {**BASE["split"], "extra": {"ten": "item == 10", "low": "item <= 11"}}
    prepared, _ = prepare_frames(make_spec(split=split), tmp_path, {"log.csv": make_log()})
    items = {name: {item for _, item, _ in prepared.rows(name)} for name in ("train", "valid", "test", "ten", "low")}
    assert items == {"train": {"12"}, "valid": {"12"}, "test": {"12"}, "ten": {"10"}, "low": {"11"}}


def test_an_extra_split_without_rows_is_left_out_and_reported(tmp_path: Path):
    split = {**BASE["split"], "extra": {"none": "item == 99"}}
    prepared, report = prepare_frames(make_spec(split=split), tmp_path, {"log.csv": make_log()})
    assert report.empty_splits == ["none"]
    assert not (prepared.path / "none").exists()


def test_a_log_without_a_clock_is_split_by_its_order(tmp_path: Path):
    spec = make_spec(log=BASE["log"] | {"time": None}, split={"fractions": [0.25, 0.25], "per_user": True})
    log = pl.DataFrame({"user": [1, 2] * 8, "item": range(16), "click": [1] * 16})
    prepared, _ = prepare_frames(spec, tmp_path, {"log.csv": log})
    assert prepared.rows("test") == [("1", "12", 12), ("1", "14", 14), ("2", "13", 13), ("2", "15", 15)]
    assert prepared.histories("test", ["click"])[1][0][-1] == ("12", 12)


def test_seeds_come_before_everything_where_the_order_is_the_clock(tmp_path: Path):
    behaviours = [{"name": "click", "filter": "click == 1", "length": 3, "seed": "clicked"}]
    spec = make_spec(log=BASE["log"] | {"time": None}, split={"fractions": [0.25, 0.25]}, behaviours=behaviours)
    history = pl.DataFrame({"user": [1], "clicked": [[5, 6]]})
    (tmp_path / "raw").mkdir()
    history.write_parquet(tmp_path / "history.parquet")
    log = pl.DataFrame({"user": [1] * 8, "item": range(8), "click": [1] * 8})
    prepared, _ = prepare_frames(spec, tmp_path, {"log.csv": log}, history=tmp_path / "history.parquet")
    assert prepared.histories("train", ["click"])[0] == [[("5", -1), ("6", -1)]]


def test_fractions_that_leave_a_split_empty_are_an_error(tmp_path: Path):
    log = make_log().with_columns(time_ms=pl.lit(MAY_1))
    with pytest.raises(DataError, match=r"split 'valid' has no rows: .* the spec asks for fractions"):
        prepare_frames(make_spec(split={"fractions": [0.2, 0.2]}), tmp_path, {"log.csv": log})
