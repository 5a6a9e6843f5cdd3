import numpy as np
import polars as pl
import pytest
from sample_partitions import write_part

from infnet.errors import ArtifactError, DataError
from infnet.updating import samples as module
from infnet.updating.samples import collect_samples, count_new, delayed_tasks
from raw_logs import make_spec

HOUR_MS = 3_600_000
SPEC = make_spec(
    tasks=[
        {"name": "click", "label": "click", "window_s": 60},
        {"name": "like", "label": "like", "window_s": 3600},
        {"name": "watch", "label": "watch", "kind": "regression", "window_s": 600},
    ]
)


def pair(number, minutes=0.0, *, click=0.0, like=0.0, watch=0.0, is_correction=False):
    """A request of one item, so many minutes after the beginning."""
    at = round(minutes * 60_000) + HOUR_MS
    ids = {"request_id": f"r{number}", "user_id": f"u{number % 7}", "time_ms": at}
    request = ids | {"version": "v", "context": "{}", "user": None}
    request |= {f"{b}_{what}": [] for b in ("click", "like") for what in ("items", "times")}
    labels = {"label_click": click, "label_like": like, "label_watch": watch}
    return request, ids | labels | {
        "item_id": "7",
        "impression_ms": at,
        "values": "{}",
        "is_correction": is_correction,
    }


def ids_of(samples, *, valid):
    rows = samples.rows.filter(pl.col("is_valid") == valid)
    return samples.requests["request_id"].gather(rows["request"].to_numpy()).to_list()


def test_every_row_is_learnt_from_or_held_out_and_a_larger_share_holds_out_the_same_and_more(tmp_path):
    write_part(tmp_path, 1, [pair(number, number / 100) for number in range(2000)])
    held = []
    for share in (0.0, 0.05, 0.3):
        found = collect_samples(tmp_path, SPEC, since_part=0, holdout=share)
        learnt, valid = (ids_of(found, valid=valid) for valid in (False, True))
        assert sorted(learnt + valid) == sorted(f"r{number}" for number in range(2000))
        assert len(valid) == pytest.approx(2000 * share, abs=4 * np.sqrt(2000 * share * (1 - share)) + 1e-9)
        held.append({*valid})
    assert held[0] < held[1] < held[2]


def test_an_update_is_judged_by_the_newest_hour_or_by_as_much_more_as_it_takes(tmp_path, monkeypatch):
    write_part(tmp_path, 1, [pair(number, number) for number in range(200)])
    write_part(tmp_path, 2, [pair(number, number) for number in range(200, 400)])
    held = [f"r{n}" for n in range(400) if f"r{n}" in ids_of(_all(tmp_path), valid=True)]
    for least in (1, 30, 60, 10_000):
        monkeypatch.setattr(module, "_LEAST_HELD_OUT", least)
        found = collect_samples(tmp_path, SPEC, since_part=1, holdout=0.25)
        hour = [name for name in held if int(name[1:]) > int(held[-1][1:]) - 60]
        assert sorted(ids_of(found, valid=True)) == sorted(held[-max(least, len(hour)) :])
        assert {int(name[1:]) for name in ids_of(found, valid=False)} <= {*range(200, 400)}
        assert found.last_part == 2


def _all(directory):
    return collect_samples(directory, SPEC, since_part=0, holdout=0.25)


def test_held_out_rows_have_the_labels_that_became_known_later(tmp_path):
    pairs = [pair(number, number) for number in range(40)]
    write_part(tmp_path, 1, pairs)
    later = [pair(n, n, click=None, like=1.0, watch=None, is_correction=True) for n in range(40)]
    write_part(tmp_path, 2, [pair(99, 99), *later])
    found = collect_samples(tmp_path, SPEC, since_part=1, holdout=0.3)
    valid = found.rows.filter("is_valid")
    assert 3 < valid.height < 30
    is_known = valid["impression_ms"] < HOUR_MS + 99 * 60_000
    assert valid.filter(is_known)["label_like"].to_list() == [1.0] * int(is_known.sum())
    assert valid["label_click"].to_list() == [0.0] * valid.height
    learnt = found.rows.filter(~pl.col("is_valid"))
    assert learnt.filter(pl.col("label_like") == 1)["label_click"].to_list() == [None] * (40 - int(is_known.sum()))


def test_of_delayed_tasks_every_impression_is_once_a_negative_and_every_positive_once_more_a_positive(tmp_path):
    assert delayed_tasks(SPEC) == ("like",)
    assert delayed_tasks(make_spec()) == ()
    pairs = [pair(1, 1, click=1.0, like=1.0, watch=3.0), pair(2, 2, click=1.0), pair(3, 3)]
    write_part(tmp_path, 1, [*pairs, pair(2, 2, click=None, like=1.0, watch=None, is_correction=True)])
    found = collect_samples(tmp_path, SPEC, since_part=0, holdout=0.0, delayed="fake_negative")
    rows = found.rows.select("request", "label_click", "label_like", "label_watch").rows()
    assert rows == [
        *[(0, 1.0, 0.0, 3.0), (0, None, 1.0, None)],
        *[(1, 1.0, 0.0, 0.0), (1, None, 1.0, None)],
        (2, 0.0, 0.0, 0.0),
    ]
    plain = collect_samples(tmp_path, SPEC, since_part=0, holdout=0.0).rows
    assert plain["label_like"].to_list() == [1.0, 0.0, 1.0, 0.0]


def test_only_new_impressions_count_as_new(tmp_path):
    assert count_new(tmp_path / "nowhere", 0) == 0
    write_part(tmp_path, 1, [pair(1), pair(2)])
    write_part(tmp_path, 2, [pair(3), pair(1, like=1.0, is_correction=True)])
    assert [count_new(tmp_path, part) for part in (0, 1, 2)] == [3, 1, 0]


def test_samples_without_anything_to_learn_from_are_said_to_be(tmp_path):
    with pytest.raises(DataError, match="no samples after partition 0; join more events"):
        collect_samples(tmp_path, SPEC, since_part=0)
    write_part(tmp_path, 1, [pair(1)])
    with pytest.raises(DataError, match="no samples to learn from"):
        collect_samples(tmp_path, SPEC, since_part=0, holdout=0.9999999)
    (tmp_path / "part-000001/samples.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="a partition of 1 to 1 is damaged"):
        collect_samples(tmp_path, SPEC, since_part=0)


def test_a_sample_without_its_request_is_named(tmp_path):
    write_part(tmp_path, 1, [pair(1), pair(2)])
    requests = pl.read_parquet(tmp_path / "part-000001/requests.parquet")
    requests.head(1).write_parquet(tmp_path / "part-000001/requests.parquet")
    with pytest.raises(ArtifactError, match="sample of request r2 without the request"):
        collect_samples(tmp_path, SPEC, since_part=0, holdout=0.0)
