import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.data.batches import BatchBuilder, Compactor, gap_buckets
from infnet.data.sessions import SessionGrouping
from random_batches import make_layout
from random_dataset import write_random_dataset

layouts = st.builds(
    make_layout,
    user=st.integers(0, 2),
    context=st.integers(0, 2),
    item=st.integers(2, 3),
    candidate=st.integers(0, 2),
    tags=st.booleans(),
    dense=st.booleans(),
    rich_sides=st.sampled_from([("user", "item"), ("context", "item", "candidate")]),
    lengths=st.sampled_from([(), (1,), (5, 3), (12, 2, 4)]),
    gap=st.booleans(),
    tasks=st.just(2),
)


def events_by_hand(path, layout, request_row):
    """Per behaviour and rank the event's field ids and gap bucket, or None, most recent first."""
    user, time, ends = (np.load(path / f"train/{n}.npy")[request_row] for n in ("user", "time", "ends"))
    item_ids = np.load(path / "items/ids.npy")
    columns = layout.id_columns("item")
    slots = []
    for behaviour, end in zip(layout.behaviours, ends, strict=True):
        start = np.load(path / f"history/{behaviour.name}.starts.npy")[user]
        for rank in range(behaviour.length):
            at = end - 1 - rank
            if at < start:
                slots.append(None)
                continue
            item = np.load(path / f"history/{behaviour.name}.items.npy")[at]
            event_time = np.load(path / f"history/{behaviour.name}.times.npy")[at]
            seconds = int(time - event_time) // 1000
            ids = [int(i) for name in layout.event_fields for i in item_ids[item, columns[name]]]
            slots.append((ids, (1 + seconds).bit_length() - 1 if behaviour.gap else None))
    return slots


def batch_by_hand(path, layout, rows):
    """What a batch of row numbers (R, N), -1 for padding, must say, as plain lists."""

    def load(name):
        file = path / f"{name}.npy"
        return np.load(file) if file.exists() else np.zeros((10_000, 0))

    requests = []
    for numbers in rows:
        first = numbers[0]
        user = load("train/user")[first]
        request = {
            "user_index": int(user),
            "user": (load("users/ids")[user].tolist(), load("users/dense")[user].tolist()),
            "context": (load("train/context")[first].tolist(), load("train/context_dense")[first].tolist()),
            "history": events_by_hand(path, layout, first) if layout.behaviours else [],
            "candidates": [],
        }
        for row in numbers:
            if row < 0:
                request["candidates"].append(None)
                continue
            item = load("train/item")[row]
            request["candidates"].append(
                {
                    "item": (load("items/ids")[item].tolist(), load("items/dense")[item].tolist()),
                    "own": (load("train/candidate")[row].tolist(), load("train/candidate_dense")[row].tolist()),
                    "labels": [None if math.isnan(v) else v for v in load("train/labels")[row].tolist()],
                }
            )
        requests.append(request)
    return requests


def batch_read_back(batch, layout):
    """The same from a batch, every position turned back into an embedding row."""

    def ids(positions):
        return [int(batch.rows[p]) if p >= 0 else -1 for p in positions.tolist()]

    def values(side, at):
        return ids(side.ids[at]), side.dense[at].tolist()

    gaps = [b.gap for b in layout.behaviours for _ in range(b.length)]
    requests = []
    for r in range(batch.num_requests):
        request = {
            "user_index": int(batch.user_index[r]),
            "user": values(batch.user, r),
            "context": values(batch.context, r),
            "history": [
                (ids(batch.event_ids[batch.history[r, i]]), int(batch.history_gap[r, i]) if has_gap else None)
                if batch.history_present[r, i]
                else None
                for i, has_gap in enumerate(gaps)
            ],
            "candidates": [],
        }
        for c in range(batch.num_candidates):
            if not batch.present[r, c]:
                assert batch.labels[r, c].isnan().all()
                request["candidates"].append(None)
                continue
            request["candidates"].append(
                {
                    "item": values(batch.item, batch.candidate_item[r, c]),
                    "own": values(batch.candidate, r * batch.num_candidates + c),
                    "labels": [None if math.isnan(v) else v for v in batch.labels[r, c].tolist()],
                }
            )
        requests.append(request)
    return requests


@settings(max_examples=40)
@given(
    layout=layouts,
    grouping=st.none()
    | st.builds(SessionGrouping, gap_s=st.sampled_from([60, 7200]), max_candidates=st.integers(2, 4)),
    batch_size=st.integers(1, 30),
    max_events=st.sampled_from([0, 1, 8]),
    horizon_s=st.sampled_from([20, 10_000]),
    seed=st.integers(0, 99),
)
def test_a_batch_says_what_the_files_say(layout, grouping, batch_size, max_events, horizon_s, seed):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        dataset = write_random_dataset(path, layout, num_rows=24, max_events=max_events, horizon_s=horizon_s, seed=seed)
        for batch in dataset.batches("train", batch_size, seed=seed, sessions=grouping):
            numbers = batch.labels[..., -1].nan_to_num(-1).to(torch.int64)  # the last task's label
            assert batch_read_back(batch, layout) == batch_by_hand(path, layout, numbers.tolist())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    layout = make_layout(tags=True, dense=True, lengths=(5, 3), gap=True, tasks=2)
    return write_random_dataset(tmp_path_factory.mktemp("dataset"), layout, num_rows=200)


def test_shapes_and_types_are_those_of_the_contract(dataset):
    layout = dataset.layout
    rows = np.array([[0, 1, 2], [7, -1, -1]])
    batch = BatchBuilder(dataset, dataset.rows("train")).build(rows)
    R, N, L = 2, 3, layout.seq_len
    assert batch.rows.dtype == batch.user_index.dtype == torch.int64
    assert batch.present.tolist() == [[True, True, True], [True, False, False]]
    for values, num, side in (
        (batch.user, R, "user"),
        (batch.context, R, "context"),
        (batch.candidate, R * N, "candidate"),
    ):
        assert values.ids.shape == (num, layout.id_width(side))
        assert values.dense.shape == (num, layout.dense_width(side))
        assert (values.ids.dtype, values.dense.dtype) == (torch.int32, torch.float32)
    assert batch.item.ids.shape[0] == batch.item.dense.shape[0] <= R * N
    assert (batch.candidate_item.shape, batch.candidate_item.dtype) == ((R, N), torch.int32)
    for history, dtype in ((batch.history, torch.int32), (batch.history_present, torch.bool)):
        assert (history.shape, history.dtype) == ((R, L), dtype)
    assert (batch.history_gap.shape, batch.history_gap.dtype) == ((R, L), torch.int32)
    assert (batch.labels.shape, batch.labels.dtype) == ((R, N, 2), torch.float32)


def test_nothing_is_listed_twice_and_every_position_points_somewhere(dataset):
    for batch in dataset.batches("train", 50, seed=1, sessions=SessionGrouping()):
        assert len(batch.rows.unique()) == len(batch.rows)
        item = torch.cat([batch.item.ids.double(), batch.item.dense.double()], dim=1)
        assert len(item.unique(dim=0)) == len(item)
        assert len(batch.candidate_item.unique()) == len(item)
        assert len(batch.history.unique()) == len(batch.event_ids)
        sides = (batch.user, batch.context, batch.item, batch.candidate)
        positions = torch.cat([*(side.ids.flatten() for side in sides), batch.event_ids.flatten()])
        assert set(positions.tolist()) - {-1} <= set(range(len(batch.rows)))


def test_without_gaps_there_is_no_gap_tensor(tmp_path):
    dataset = write_random_dataset(tmp_path, make_layout(gap=False))
    batch = next(dataset.batches("train", 8))
    assert batch.history_gap.shape == (8, 0)


def test_a_requests_history_is_that_of_its_first_row(dataset):
    rows, builder = dataset.rows("train"), BatchBuilder(dataset, dataset.rows("train"))
    grown = [
        r for r in range(len(rows) - 1) if rows.user[r] == rows.user[r + 1] and (rows.ends[r + 1] > rows.ends[r]).any()
    ]
    assert grown, "some user's history grows between two rows"
    for row in grown:
        alone, later = builder.build(np.array([[row]])), builder.build(np.array([[row + 1]]))
        page = builder.build(np.array([[row, row + 1]]))
        read = [batch_read_back(b, dataset.layout)[0]["history"] for b in (alone, page, later)]
        assert read[1] == read[0]
        assert read[1] != read[2]


def test_a_page_holds_nothing_from_after_its_first_row(dataset):
    split, layout = dataset.rows("train"), dataset.layout
    for batch in dataset.batches("train", 40, sessions=SessionGrouping(gap_s=7200)):
        for request, row in enumerate(batch.labels[:, 0, -1].long().tolist()):
            seen = batch.history_present[request].split([b.length for b in layout.behaviours])
            for column, present in enumerate(seen):
                history, end = dataset.histories[column], int(split.ends[row, column])
                times = history.times[end - int(present.sum()) : end]
                assert (times < split.time[row]).all()


def test_batches_do_not_share_memory_with_the_files_or_with_each_other(dataset):
    builder = BatchBuilder(dataset, dataset.rows("train"))
    first = builder.build(np.arange(10)[:, None])
    before = batch_read_back(first, dataset.layout)
    for tensor in (first.labels, first.user.dense, first.item.dense):
        tensor.add_(0.0)  # memory maps are read-only
    builder.build(np.arange(50, 90)[:, None])
    assert batch_read_back(first, dataset.layout) == before


@given(calls=st.lists(st.lists(st.integers(0, 11), max_size=30), min_size=1, max_size=4))
def test_compacting_lists_what_unique_lists(calls):
    compact = Compactor(12)
    for ids in calls:  # one after the other: nothing of an earlier call may show
        distinct, positions = compact(np.array(ids, dtype=np.int64))
        assert sorted(distinct.tolist()) == np.unique(ids).tolist()
        assert distinct[positions].tolist() == ids
        assert (distinct.dtype, positions.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("bucket", range(1, 21))
def test_a_gap_bucket_begins_where_the_seconds_double(bucket):
    begins = (2**bucket - 1) * 1000
    assert gap_buckets(np.array([begins, 2 * begins])).tolist() == [bucket, bucket]  # 2 * begins + 1 s is the next
    assert gap_buckets(np.array([begins - 1000])).tolist() == [bucket - 1]


def test_gaps_of_nothing_and_of_ages_have_buckets():
    assert gap_buckets(np.array([0, 999, 10**15])).tolist() == [0, 0, 31]
