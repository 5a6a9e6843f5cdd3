from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.data.encoders import Encoder
from infnet.errors import DataError, SpecError
from infnet.features import Fit, parse_feature

NOON_UTC = 1_651_406_400_000  # 2022-05-01 12:00 UTC, a Sunday, 20:00 in Shanghai


def fitted(values, weights=None, *, timezone="UTC", **declared):
    """An encoder of one feature, called x and on the item's side unless declared otherwise, fitted on raw values."""
    feature = parse_feature({"name": "x", "side": "item", **declared})
    unfitted = Encoder.build([feature], {"x": Fit(counts=pl.DataFrame({"value": [], "count": []}))}, timezone)
    typed = unfitted.read("x", pl.Series(values), [0] * len(values))
    weights = weights or [1] * len(values)
    fit = feature.fit(pl.DataFrame({"value": typed, "weight": weights}))
    return Encoder.build([feature], {"x": fit}, timezone)


def test_categories_get_rows_by_frequency_then_by_text():
    encoder = fitted(["b", "a", "c", "c"], kind="category")
    assert encoder.encode("x", ["c", "a", "b"]).tolist() == [[3], [4], [5]]
    assert encoder.num_rows == 6  # nobody's row, unknown, missing and three values


def test_unknown_and_missing_categories_have_rows_of_their_own():
    encoder = fitted(["a"], kind="category")
    assert encoder.encode("x", ["z", None, ""]).tolist() == [[1], [2], [2]]


@pytest.mark.parametrize("same", [[123, 7], ["123", "7"], [123.0, 7.0], ["123.0", "7.00"]])
def test_one_category_is_one_row_however_it_is_spelt(same):
    assert fitted([123, 7, 7], kind="category").encode("x", same).tolist() == [[4], [3]]


def test_text_that_is_no_whole_number_is_left_as_it_is():
    encoder = fitted(["1.50", "1.5", "v1.0", "v1"], kind="category")
    assert len({int(row) for row in encoder.encode("x", ["1.50", "1.5", "v1.0", "v1"])[:, 0]}) == 4


def test_min_count_sends_rare_values_to_the_unknown_row():
    encoder = fitted(["a", "b"], [3, 2], kind="category", min_count=3)
    assert encoder.encode("x", ["a", "b"]).tolist() == [[3], [1]]


def test_hashing_is_the_same_in_every_process_and_knows_no_unknown_value():
    encoder = fitted(["a"], kind="category", hash_buckets=10)
    rows = encoder.encode("x", ["a", "never seen", None])[:, 0].tolist()
    code = "import zlib; print([3 + zlib.crc32(text.encode()) % 10 for text in ('a', 'never seen')])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert rows == [*json.loads(other), 2]
    assert encoder.num_rows == 13


def test_features_of_one_vocabulary_share_rows_fitted_on_their_counts_together():
    features = [
        parse_feature({"kind": "category", "name": name, "side": "item", "vocabulary": "author", "min_count": 3})
        for name in ("author", "singer")
    ]
    counts = [
        pl.DataFrame({"value": values, "weight": weights}) for values, weights in ((["p", "q"], [2, 2]), (["p"], [1]))
    ]
    encoder = Encoder.build(features, {f.name: f.fit(c) for f, c in zip(features, counts, strict=True)}, "UTC")
    assert encoder.encode("author", ["p", "q"]).tolist() == encoder.encode("singer", ["p", "q"]).tolist() == [[3], [1]]


def test_features_that_share_a_vocabulary_must_agree_how_it_is_made():
    features = [
        parse_feature({"kind": "category", "name": "a", "side": "item", "vocabulary": "v", "hash_buckets": 5}),
        parse_feature({"kind": "category", "name": "b", "side": "item", "vocabulary": "v"}),
    ]
    empty = pl.DataFrame(schema={"value": pl.String, "weight": pl.Int64})
    with pytest.raises(SpecError, match="'a', 'b' share the vocabulary 'v' but differ in hash_buckets"):
        Encoder.build(features, {f.name: f.fit(empty) for f in features}, "UTC")


def test_tags_are_split_cut_and_padded():
    encoder = fitted(["a,b", "a"], kind="tags", max_values=2)
    assert encoder.encode("x", ["b, a", "a,b,a", "z", "", None]).tolist() == [[4, 3], [3, 4], [1, -1], [2, -1], [2, -1]]


def test_tags_in_lists_and_in_text_agree():
    encoder = fitted(["3,5", "5"], kind="tags", max_values=3)
    assert encoder.encode("x", [[5, 3], []]).tolist() == encoder.encode("x", ["5,3", None]).tolist()


def test_quantile_buckets_are_filled_equally():
    encoder = fitted(list(range(100)), kind="number", buckets=4)
    rows = encoder.encode("x", list(range(100)))[:, 0]
    assert np.unique(rows, return_counts=True)[1].tolist() == [25, 25, 25, 25]


def test_equal_quantiles_are_one_edge():
    encoder = fitted([0.0] * 90 + [1.0] * 5 + [2.0] * 5, kind="number", buckets=10)
    assert encoder.encode("x", [-1.0, 0.0, 1.0, 2.0, 9.0]).tolist() == [[3], [3], [4], [4], [4]]


def test_quantiles_count_training_rows_not_entities():
    by_rows = fitted([1.0, 2.0, 3.0], [98, 1, 1], kind="number", buckets=2)
    assert by_rows.encode("x", [1.0, 2.0]).tolist() == [[3], [3]]


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=50), st.sampled_from(["quantile", "log"]))
def test_a_larger_number_never_has_a_lower_bucket(values, method):
    encoder = fitted(values, kind="number", buckets=6, method=method)
    rows = encoder.encode("x", sorted([*values, -1e13, 1e13]))[:, 0]
    assert (np.diff(rows) >= 0).all()
    assert rows.min() >= 3
    assert rows.max() < encoder.num_rows


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "", "nan"])
def test_a_number_that_is_none_has_the_missing_row(missing):
    assert fitted([1.0, 2.0], kind="number").encode("x", [missing]).tolist() == [[2]]


def test_values_are_standardised_and_the_missing_one_is_the_mean():
    encoder = fitted([1.0, 3.0], kind="value")
    assert encoder.encode("x", ["1", "3", "5", None]).tolist() == [[-1.0], [1.0], [3.0], [0.0]]


def test_values_on_a_log_scale_are_logged_before_the_mean_is_taken():
    encoder = fitted([0.0, np.expm1(2.0)], kind="value", log=True)
    assert encoder.encode("x", [np.expm1(1.0), -np.expm1(1.0)])[:, 0] == pytest.approx([0.0, -2.0], abs=1e-6)


def test_a_constant_value_is_zero_not_nan():
    assert fitted([4.0, 4.0], kind="value").encode("x", [4.0]).tolist() == [[0.0]]


def test_vectors_are_standardised_column_by_column():
    encoder = fitted([[0.0, 10.0], [2.0, 10.0]], kind="vector", width=2)
    assert encoder.encode("x", ["2, 11", "[0,10]", None]).tolist() == [[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]


def test_a_vector_of_another_length_is_refused_with_its_place():
    encoder = fitted([[0.0, 1.0]], kind="vector", width=2)
    with pytest.raises(DataError, match=r"value 1 of feature 'x' has 3 numbers, wanted 2"):
        encoder.encode("x", ["1,2", "1,2,3"])


def test_hours_are_those_of_the_time_zone():
    encoder = fitted([None], kind="hour", side="context", timezone="Asia/Shanghai")
    assert encoder.encode("x", [None], [NOON_UTC]).tolist() == [[3 + 20]]


def test_hours_of_the_week_begin_on_monday():
    encoder = fitted([None], kind="hour", side="context", of="week")
    assert encoder.encode("x", [None], [NOON_UTC]).tolist() == [[3 + 6 * 24 + 12]]


def test_age_reads_dates_in_any_spelling():
    encoder = fitted([None], kind="age", side="candidate")
    spellings = ["2022-04-11", "2022-04-11 00:00:00", "20220411", str(1_649_635_200), str(1_649_635_200_000)]
    rows = encoder.encode("x", spellings, [NOON_UTC] * 5)[:, 0]
    assert len(set(rows.tolist())) == 1
    later = encoder.encode("x", ["2022-05-02", "2022-05-01", "2012-01-01", None], [NOON_UTC] * 4)[:, 0]
    assert later[0] == 3  # not born yet
    assert later[0] < later[1] < rows[0] < later[2] == encoder.num_rows - 1
    assert later[3] == 2


DATES = [
    ["2022-04-11", "2022-05-02", "2012-01-01", "2022-05-01 11:59", "2022/04/11 08:30:00.25", None, ""],
    ["2022-04-11T08:30:00+02:00", "2022-05-01T12:00:00Z", "20220411", "1649635200", "1649635200000"],
    [20220411, 20220502, None, 1_649_635_200, 1_649_635_200_000, 1_649_635_200_000_000],
    [1_649_635_200.5, 20220411.0, None],
    [dt.date(2022, 4, 11), dt.date(2030, 1, 1), None],
    [dt.datetime(2022, 4, 11, 8, 30, 0, 1500), dt.datetime(2022, 5, 1, 12), None],
    [dt.datetime(2022, 4, 11, 8, 30, tzinfo=dt.UTC), None],
    [None, None],
]


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Shanghai"])
@pytest.mark.parametrize("raw", DATES)
def test_an_age_from_the_date_that_was_kept_is_the_age_from_the_raw_one(raw, timezone):
    encoder, dates = fitted([None], kind="age", side="candidate", buckets=40, timezone=timezone), pl.Series(raw)
    feature = encoder.features["x"]
    kept = pl.DataFrame({"raw": dates}).select(feature.item_value(pl.col("raw"), dates.dtype, timezone))
    kept = kept.to_series().cast(pl.Float64).fill_null(float("nan")).to_numpy()
    for at in (NOON_UTC, NOON_UTC + 3_600_000, NOON_UTC - 25 * 86_400_000, 0):
        wanted = encoder.encode("x", dates, [at] * len(dates))
        found = feature.encode_at(kept, at, encoder.fitted("x"))
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()


def test_only_kinds_that_read_an_item_have_a_value_of_it():
    feature = parse_feature({"kind": "number", "name": "x", "side": "candidate"})
    with pytest.raises(TypeError, match="kind 'number' reads no column of an item"):
        feature.encode_at(np.zeros(1), NOON_UTC, None)


def test_what_is_no_number_is_refused_with_what_was_wanted():
    with pytest.raises(DataError, match=r"value 1 of feature 'x' is 'much', wanted a number"):
        fitted([1.0], kind="number").encode("x", ["1", "much"])


def test_hashing_and_min_count_exclude_each_other():
    with pytest.raises(ValueError, match="both hash_buckets and min_count"):
        parse_feature({"kind": "category", "name": "x", "side": "item", "hash_buckets": 5, "min_count": 2})
