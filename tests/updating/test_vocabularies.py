import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.data.dataset import Dataset
from infnet.export.catalogue import Catalogue
from infnet.export.learning import WAITING_SCHEMA, LearningState
from infnet.training.config import TrainConfig
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import Samples
from infnet.updating.vocabularies import relist
from raw_logs import DAY_MS, MAY_1, make_log, make_spec, prepare_frames

BEGIN = MAY_1 + 10 * DAY_MS
LEAST = {"user": 1, "item": 1, "tab": 3, "topic": 2}
"""By vocabulary, rows that have to name a value."""


@dataclass(frozen=True)
class Row:
    """An impression of item 10 to user 1, unless told otherwise."""

    tab: str | None = None
    topic: str | None = None
    topics: tuple[str, ...] = ()
    user: str = "1"
    item: str = "10"
    day: float = 0.0
    is_valid: bool = False

    @property
    def named(self):
        """Values by vocabulary."""
        values = [("user", self.user), ("item", self.item), ("tab", self.tab), ("topic", self.topic)]
        return [(name, value) for name, value in [*values, *(("topic", t) for t in self.topics)] if value is not None]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A catalogue with users 1 and 2, items 10 to 12, the tab home, and cats and dogs as topics of two features."""
    log = make_log().with_columns(tab=pl.lit("home"), topic=pl.lit("cats"), topics=pl.lit("cats,dogs"))
    features = [
        {"kind": "id", "name": "user", "side": "user"},
        {"kind": "id", "name": "item", "side": "item"},
        {"kind": "category", "name": "tab", "side": "context", "min_count": 3},
        {"kind": "category", "name": "topic", "side": "context", "min_count": 2},
        {"kind": "tags", "name": "topics", "side": "candidate", "vocabulary": "topic", "min_count": 2},
    ]
    prepared, _ = prepare_frames(make_spec(features=features), tmp_path_factory.mktemp("known"), {"log.parquet": log})
    return Catalogue.of_dataset(Dataset.open(prepared.path))


def learning_of(catalogue, waiting=None, seen_day=None):
    """What training left, whose rows were last named on a day."""
    seen = np.zeros(catalogue.encoder.num_rows, dtype=np.int64)
    if seen_day is not None:
        seen[:] = BEGIN + round(seen_day * DAY_MS)
    waiting = pl.DataFrame(schema=WAITING_SCHEMA) if waiting is None else waiting
    return LearningState(TrainConfig(), {}, seen, waiting)


def read(catalogue, rows, of_request=1):
    """Samples, so many side by side of one request, whose context is that of the first."""
    requests = rows[::of_request]
    times = [BEGIN + round(row.day * DAY_MS) for row in rows]
    frame = pl.DataFrame(
        {
            "request": np.arange(len(rows)) // of_request,
            "item": [row.item for row in rows],
            "impression_ms": times,
            "values": [json.dumps({"topics": [*row.topics]}) for row in rows],
            "label_click": [0.0] * len(rows),
            "is_valid": [row.is_valid for row in rows],
            "is_repeat": False,
        }
    )
    of_requests = pl.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(len(requests))],
            "user_id": [row.user for row in requests],
            "time_ms": times[::of_request],
            "context": [json.dumps({"tab": row.tab, "topic": row.topic}) for row in requests],
            "user": pl.Series([None] * len(requests), dtype=pl.String),
        }
    )
    return ReadSamples.read(Samples(frame, of_requests, 1), catalogue.encoder, ())


def values_of(encoder):
    return {name: encoder.values(name)["value"].to_list() for name in LEAST}


ROWS = st.lists(
    st.builds(
        Row,
        tab=st.sampled_from([None, "home", "a", "b"]),
        topic=st.sampled_from([None, "cats", "a", "b"]),
        topics=st.lists(st.sampled_from(["dogs", "a", "b", "c"]), max_size=3).map(tuple),
        user=st.sampled_from(["1", "3"]),
        item=st.sampled_from(["10", "99"]),
        is_valid=st.booleans(),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=60)
@given(rows=ROWS, cuts=st.sets(st.integers(1, 13)))
def test_a_value_gets_a_row_once_enough_rows_to_learn_from_have_named_it_over_all_updates(known, rows, cuts):
    counts = Counter(named for row in rows if not row.is_valid for named in row.named)
    start = values_of(known.encoder)
    wanted = {name: {*values} for name, values in start.items()}
    for (name, value), count in counts.items():
        if count >= LEAST[name]:
            wanted[name].add(value)
    catalogue, learning = known, learning_of(known)
    ends = [*sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for begin, end in zip([0, *ends], ends, strict=False):
        found = relist(catalogue, learning, read(catalogue, rows[begin:end]), {})
        catalogue = replace(catalogue, encoder=found.encoder)
        learning = learning_of(catalogue, found.waiting)
    for name, values in values_of(catalogue.encoder).items():
        assert sorted(values) == sorted(wanted[name])
        assert values[: len(start[name])] == start[name]
    waiting = {(name, value): count for name, value, count, _ in learning.waiting.select([*WAITING_SCHEMA]).rows()}
    assert waiting == {key: count for key, count in counts.items() if key[1] not in wanted[key[0]]}


@settings(max_examples=40)
@given(rows=ROWS, order=st.randoms())
def test_the_order_of_rows_changes_nothing(known, rows, order):
    shuffled = [*rows]
    order.shuffle(shuffled)
    one, two = (relist(known, learning_of(known), read(known, each), {}) for each in (rows, shuffled))
    assert values_of(one.encoder) == values_of(two.encoder)
    assert one.waiting.equals(two.waiting)
    assert one.added == two.added


def test_more_frequent_values_come_first(known):
    rows = [*[Row(user="7")] * 2, *[Row(user="9")] * 3, *[Row(user="8")] * 2]
    assert values_of(relist(known, learning_of(known), read(known, rows), {}).encoder)["user"] == [
        *("1", "2", "9", "7", "8")
    ]


def test_what_a_request_says_counts_for_each_of_its_rows(known):
    found = relist(known, learning_of(known), read(known, [Row(tab="a", topic="b")] * 3, of_request=3), {})
    assert found.added == {"tab": 1, "topic": 1}
    assert found.waiting.is_empty()


def evicted(catalogue, rows, days, **options):
    found = relist(catalogue, learning_of(catalogue, **options), read(catalogue, rows), {}, days)
    return found, {name: values.to_list() for name, values in found.forgotten.items()}


def test_a_value_goes_once_nothing_has_named_it_for_longer_than_so_many_days(known):
    rows = [Row(tab="home", topic="cats", day=20.0)]
    others = {"item": ["11", "12"], "topic": ["dogs"], "user": ["2"]}
    for days, gone in ((20.0, {}), (19.99, others), (0.0, others)):
        found, forgotten = evicted(known, rows, days, seen_day=0.0)
        assert forgotten == gone
        assert found.added == {}
        kept = values_of(found.encoder)
        for name, values in values_of(known.encoder).items():
            assert kept[name] == [value for value in values if value not in gone.get(name, ())]
        rows_of_kept = found.origin[found.encoder.values("topic")["row"].to_numpy()].tolist()
        before = dict(known.encoder.values("topic").rows())
        assert rows_of_kept == [before[value] for value in kept["topic"]]


def test_a_value_that_was_forgotten_and_comes_back_begins_anew(known):
    first, forgotten = evicted(known, [Row(day=20.0)], 5, seen_day=0.0)
    assert forgotten["user"] == ["2"]
    catalogue = replace(known, encoder=first.encoder)
    second = relist(catalogue, learning_of(catalogue, first.waiting), read(catalogue, [Row(user="2", day=21.0)]), {})
    assert second.added == {"user": 1}
    (row,) = second.encoder.encode("user", ["2"])[0]
    assert second.origin[row] == -1


def test_what_waits_for_its_row_is_forgotten_as_well(known):
    first, _ = evicted(known, [Row(tab="a"), Row(tab="b", day=9.0)], 100)
    assert {*first.waiting["value"]} == {"a", "b"}
    second, _ = evicted(known, [Row(day=10.0)], 5, waiting=first.waiting)
    assert second.waiting["value"].to_list() == ["b"]
    both, _ = evicted(known, [Row(tab="a", day=10.0)] * 2, 5, waiting=first.waiting)
    assert both.added == {"tab": 1}  # named again in time, with what was counted before


def test_without_a_limit_nothing_is_forgotten(known):
    found, forgotten = evicted(known, [Row(day=10_000.0)], None, seen_day=0.0)
    assert forgotten == {}
    assert values_of(found.encoder) == values_of(known.encoder)
    assert found.origin.tolist() == [*range(known.encoder.num_rows)]
