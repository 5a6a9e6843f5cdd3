from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infnet.data.histories import LogEvents, SeedEvents, build_streams, is_repeated
from raw_logs import MAY_1, Prepared, make_spec, prepare_frames

BEHAVIOURS = [
    {"name": "seen", "filter": "true", "length": 4, "seed": "seen_seq"},
    {"name": "click", "filter": "click == 1", "length": 2, "seed": "click_seq"},
    {"name": "like", "filter": "liked == 1", "length": 3},
]
STEP = 6 * 3_600_000  # so that rows of all splits, and ties at their borders, are common

log_rows = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.integers(1, 4),
            "item": st.integers(1, 5),
            "time_ms": st.integers(0, 11).map(lambda step: MAY_1 + step * STEP),
            "click": st.integers(0, 1),
            "liked": st.sampled_from([0, 1, None]),
            "shown_at_random": st.sampled_from([0, 0, 0, 1]),
        }
    ),
    max_size=30,
)
seeds = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.integers(-3, 11),
        st.lists(st.integers(1, 7), max_size=4),
        st.lists(st.integers(1, 7), max_size=2),
    ),
    max_size=4,
)
# Every split needs a row; a user of their own keeps these out of the way.
ANCHORS = [
    {"user": 9, "item": 1, "time_ms": MAY_1 + day * 4 * STEP, "click": 0, "liked": 0, "shown_at_random": 0}
    for day in range(3)
]


def slow_histories(rows, seed_rows):
    """(user, item, time) -> histories, by the rule as it is written down, one row at a time."""
    distinct = [row for at, row in enumerate(rows) if row not in rows[:at]]
    items = {row["item"] for row in rows}
    users = {row["user"] for row in rows}
    is_event = {
        "seen": lambda row: True,
        "click": lambda row: row["click"] == 1,
        "like": lambda row: row["liked"] == 1,
    }
    result = []
    for row in rows:
        histories = []
        for name, list_at in (("seen", 2), ("click", 3), ("like", None)):
            events = []
            for order, seed in enumerate(seed_rows if list_at else []):
                if seed[0] == row["user"] and seed[0] in users and seed[1] < row["time_ms"]:
                    events += [
                        ((seed[1], 0, at, order), item) for at, item in enumerate(seed[list_at]) if item in items
                    ]
            for order, other in enumerate(distinct):
                if (
                    other["user"] == row["user"]
                    and other["time_ms"] < row["time_ms"]
                    and not other["shown_at_random"]
                    and is_event[name](other)
                ):
                    events.append(((other["time_ms"], 1, order, 0), other["item"]))
            histories.append([(str(item), key[0]) for key, item in sorted(events)])
        result.append((str(row["user"]), str(row["item"]), row["time_ms"], histories))
    return result


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=log_rows,
    seed_rows=seeds,
    rows_per_partition=st.sampled_from([1, 3, 1000]),
    suffix=st.sampled_from(["csv", "parquet"]),
)
def test_every_row_sees_exactly_the_strictly_earlier_events(rows, seed_rows, rows_per_partition, suffix):
    # One history row per user: of a second one with the same time, the order would be open.
    seed_rows = list({user: (user, MAY_1 + step * STEP, *lists) for user, step, *lists in seed_rows}.values())
    rows = [*rows, *ANCHORS]
    history = pl.DataFrame(
        {
            name: [row[at] for row in seed_rows]
            for at, name in enumerate(("user", "last_time_ms", "seen_seq", "click_seq"))
        },
        schema={
            "user": pl.Int64,
            "last_time_ms": pl.Int64,
            "seen_seq": pl.List(pl.Int64),
            "click_seq": pl.List(pl.Int64),
        },
    )
    spec = make_spec(
        behaviours=BEHAVIOURS,
        split={
            "valid_from": "2022-05-02",
            "test_from": "2022-05-03",
            "extra": {"random": "shown_at_random == 1"},
        },
    )
    with tempfile.TemporaryDirectory() as directory:
        history.write_parquet(Path(directory) / "history.parquet")
        prepared, _ = prepare_frames(
            spec,
            Path(directory),
            {f"log.{suffix}": pl.DataFrame(rows, schema_overrides={"liked": pl.Int64})},
            history=Path(directory) / "history.parquet",
            rows_per_partition=rows_per_partition,
        )
        splits = ("train", "valid", "test", *(["random"] if any(row["shown_at_random"] for row in rows) else []))
        found = [
            (*row, histories)
            for split in splits
            for row, histories in zip(
                prepared.rows(split), prepared.histories(split, ["seen", "click", "like"]), strict=True
            )
        ]
    assert sorted(found) == sorted(slow_histories(rows, seed_rows))


def test_events_at_one_time_keep_the_order_of_the_log_and_do_not_see_each_other(tmp_path: Path):
    rows = [{"user": 1, "item": item, "time_ms": MAY_1, "click": 1} for item in (7, 3, 5)]
    rows += [{"user": 1, "item": 1, "time_ms": MAY_1 + day * 86_400_000, "click": 0} for day in (1, 2)]
    prepared, _ = prepare_frames(make_spec(), tmp_path, {"log.csv": pl.DataFrame(rows)})
    assert prepared.histories("train", ["click"]) == [[[]], [[]], [[]]]
    assert prepared.histories("valid", ["click"]) == [[[("7", MAY_1), ("3", MAY_1), ("5", MAY_1)]]]


def test_the_stored_streams_do_not_depend_on_the_partition_size(tmp_path: Path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 40, 500),
            "item": rng.integers(0, 30, 500),
            "time_ms": MAY_1 + rng.integers(0, 72, 500) * 3_600_000,
            "click": rng.integers(0, 2, 500),
        }
    )
    whole, _ = prepare_frames(make_spec(), tmp_path / "a", {"log.parquet": frame})
    pieces, _ = prepare_frames(make_spec(), tmp_path / "b", {"log.parquet": frame}, rows_per_partition=17)
    assert without_report(whole) == without_report(pieces)


def without_report(prepared: Prepared) -> dict[str, bytes]:
    return {name: content for name, content in prepared.files().items() if name != "report.json"}


def test_a_row_that_differs_in_a_column_nobody_uses_is_an_event_of_its_own(tmp_path: Path):
    first = {"user": 1, "item": 7, "time_ms": MAY_1, "click": 1, "note": "a"}
    rows = [first, first, first | {"note": "b"}]
    rows += [{**first, "time_ms": MAY_1 + day * 86_400_000, "click": 0} for day in (1, 2)]
    prepared, report = prepare_frames(make_spec(), tmp_path, {"log.csv": pl.DataFrame(rows)})
    assert len(prepared.rows("train")) == 3
    assert report.log.repeated == 1
    assert prepared.histories("valid", ["click"]) == [[[("7", MAY_1), ("7", MAY_1)]]]


def test_repeats_are_found_where_they_are_not_neighbours():
    user, time = np.array([1, 1, 1, 1, 2], np.int32), np.array([5, 5, 5, 6, 6])
    signature, order = np.array([8, 9, 8, 8, 8], np.uint64), np.arange(5)
    assert is_repeated(user, time, signature, order).tolist() == [False, False, True, False, False]


def test_a_user_with_seeds_alone_has_a_history_but_no_row():
    rows = LogEvents(np.array([3], np.int32), np.array([10]), np.array([1], np.int32), np.array([[True]]))
    seeds = SeedEvents(
        np.array([2, 2], np.int32),
        np.array([9, 9]),
        np.array([5, 6], np.int32),
        np.zeros(2, np.int8),
        np.array([0, 1], np.int32),
    )
    streams = build_streams(rows, seeds, np.zeros(1, np.int64))
    assert streams.users[0].tolist() == [2, 2, 3]
    assert streams.items[0].tolist() == [5, 6, 1]
    assert streams.ends.tolist() == [[2]]


def test_a_delayed_event_is_seen_strictly_after_its_delay(tmp_path: Path):
    times = [0, 999, 1000, 1001, 5000]
    rows = [{"user": u, "item": 7 + i, "time_ms": MAY_1 + t, "click": 1} for u in (1, 2) for i, t in enumerate(times)]
    rows += [{"user": 1, "item": 7, "time_ms": MAY_1 + day * 86_400_000, "click": 1} for day in (1, 2)]
    prepared, _ = prepare_frames(make_spec().with_delay(1.0), tmp_path, {"log.csv": pl.DataFrame(rows)})
    expected = [[], [], [], ["7"], ["7", "8", "9", "10"]]
    seen = [[item for item, _ in events] for (events,) in prepared.histories("train", ["click"])]
    assert seen == expected * 2
