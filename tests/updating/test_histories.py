from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_partitions import log_samples, write_part

from infnet.data.dataset import EntityTable, History
from infnet.export.catalogue import Catalogue, Entities
from infnet.updating.histories import merged_histories
from infnet.updating.partition import write_partition
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples

USERS = ("u1", "u2", "u3")


def events_of(history):
    """By user, (item, time) in their order."""
    pairs = [*zip(history.items.tolist(), history.times.tolist(), strict=True)]
    return [pairs[a:b] for a, b in zip(history.starts[:-1], history.starts[1:], strict=True)]


def history_of(events):
    """The opposite."""
    starts = np.append(0, np.cumsum([len(each) for each in events]))
    items, times = ([event[i] for each in events for event in each] for i in range(2))
    return History(starts, np.array(items, dtype=np.int32), np.array(times, dtype=np.int64))


def until(history, times):
    """Each user's events before a time of their own."""
    return history_of(
        [[event for event in events if event[1] < end] for events, end in zip(events_of(history), times, strict=True)]
    )


def test_histories_go_on_as_if_the_requests_had_been_prepared(dataset, catalogue, tmp_path):
    """What was known before the days of the requests, and what each of these read, is what preparation knows."""
    pairs = log_samples(dataset, "valid") + log_samples(dataset, "test")
    write_part(tmp_path / "samples", 1, pairs)
    samples = collect_samples(tmp_path / "samples", catalogue.spec, since_part=0, holdout=0.0)
    read = ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)
    begin = int(dataset.rows("valid").time.min())
    before = tuple(until(history, [begin] * catalogue.users.num) for history in dataset.histories)
    known = replace(catalogue, histories=before)
    (tmp_path / "partition").mkdir()
    partition = write_partition(tmp_path / "partition", read, known, dataset.layout)
    merged = merged_histories(known, partition, read.users)
    last = {request["user_id"]: request["time_ms"] for request, _ in sorted(pairs, key=lambda p: p[0]["time_ms"])}
    ends = [begin, *(last.get(key, begin) for key in catalogue.users.keys)]
    assert len(last) > 10
    for found, whole, old in zip(merged, dataset.histories, before, strict=True):
        wanted = until(whole, ends)
        assert events_of(found) == events_of(wanted)
        assert len(wanted.items) > len(old.items) + 50


@pytest.fixture(scope="module")
def three_users(dataset):
    nothing = EntityTable(np.zeros((4, 0), np.int32), np.zeros((4, 0), np.float32))
    return replace(Catalogue.of_dataset(dataset), users=Entities(pl.Series("key", USERS), nothing))


EVENT = st.tuples(st.integers(1, 3), st.integers(0, 6))


@given(
    past=st.lists(st.lists(EVENT, unique=True, max_size=5), min_size=3, max_size=3),
    new=st.lists(st.tuples(st.sampled_from([*USERS, "nobody", ""]), EVENT, st.integers(0, 3)), max_size=12),
)
def test_every_event_is_there_once_in_order_of_time(three_users, past, new):
    """Each request reads the last few events of its user, then one more happens; several may be at one time."""
    stored = [[], *(sorted(events, key=lambda event: event[1]) for events in past)]
    truth = dict(zip(USERS, (list(events) for events in stored[1:]), strict=True))
    readers, requests = [], []
    for user, (item, time), num in new:
        event = (item, max([time, *(at for _, at in truth.get(user, [])[-1:])]))
        if user in truth:
            truth[user] += [event] * (event not in truth[user])
        readers.append(user)
        events = truth.get(user, [event])
        requests.append(events[len(events) - min(num + 1, len(events)) :])
    partition = SimpleNamespace(histories=(history_of([[], *requests]),))
    known = replace(three_users, histories=(history_of(stored),))
    (merged,) = merged_histories(known, partition, pl.Series("key", readers, dtype=pl.String))
    assert events_of(merged) == [[], *(truth[user] for user in USERS)]
