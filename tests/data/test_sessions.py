import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infnet.data.sessions import Requests, SessionGrouping, group_sessions

steps = st.lists(
    st.tuples(
        st.sampled_from([False] * 9 + [True]),  # another user
        st.sampled_from([0, 0, 0, 1, 59_999, 60_000, 60_001]),  # ms since the row before
        st.sampled_from([7] * 9 + [8]),  # context id
        st.sampled_from([0.5] * 9 + [0.0]),  # context value
    ),
    max_size=40,
)
groupings = st.builds(SessionGrouping, gap_s=st.sampled_from([0, 60]), max_candidates=st.integers(2, 5))


def arrays(rows):
    users, times, user, time = [], [], 0, 0
    for changes, pause, _, _ in rows:
        user, time = (user + 1, 0) if changes else (user, time + pause)
        users.append(user)
        times.append(time)
    contexts = (np.array([[r[2]] for r in rows], np.int32), np.array([[r[3]] for r in rows], np.float32))
    shaped = tuple(context.reshape(len(rows), 1) for context in contexts)
    return np.array(users, np.int32), np.array(times, np.int64), shaped


def by_hand(rows, users, times, grouping):
    """Row numbers of every request, one row at a time."""
    requests: list[list[int]] = []
    for row in range(len(rows)):
        joins = (
            row > 0
            and users[row] == users[row - 1]
            and times[row] - times[row - 1] <= grouping.gap_s * 1000
            and rows[row][2:] == rows[row - 1][2:]
            and len(requests[-1]) < grouping.max_candidates
        )
        if joins:
            requests[-1].append(row)
        else:
            requests.append([row])
    return requests


def requests_of(batch):
    return [[row for row in request if row >= 0] for request in batch.tolist()]


@given(rows=steps, grouping=groupings)
def test_a_request_is_a_users_rows_in_one_context_without_a_pause_up_to_the_size_it_may_have(rows, grouping):
    users, times, contexts = arrays(rows)
    found = group_sessions(users, times, contexts, grouping)
    wanted = by_hand(rows, users, times, grouping)
    assert [list(range(a, b)) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)] == wanted


def test_without_context_fields_users_and_pauses_alone_decide():
    users, times = np.array([1, 1, 2, 2], np.int32), np.array([0, 9, 9, 99_000], np.int64)
    none = np.zeros((4, 0), np.int32)
    assert group_sessions(users, times, (none, none), SessionGrouping(gap_s=60)).starts.tolist() == [0, 2, 3, 4]


sizes = st.lists(st.integers(1, 5), max_size=30)


def make_requests(sizes):
    return Requests(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


@given(sizes=sizes, batch_size=st.integers(1, 12), seed=st.sampled_from([None, 0, 7]), epoch=st.integers(0, 2))
def test_every_request_is_in_one_batch_whole_and_no_batch_has_too_many_rows(sizes, batch_size, seed, epoch):
    requests = make_requests(sizes)
    batches = requests.batches(batch_size, seed, epoch)
    found = [request for batch in batches for request in requests_of(batch)]
    wanted = [list(range(a, b)) for a, b in zip(requests.starts[:-1], requests.starts[1:], strict=True)]
    assert sorted(found) == wanted
    if seed is None:
        assert found == wanted
    for batch in batches:
        rows = requests_of(batch)
        assert sum(map(len, rows)) <= batch_size or len(rows) == 1
        assert batch.shape == (len(rows), max(map(len, rows)))  # no wider than its longest request
        assert [r[: len(k)] for r, k in zip(batch.tolist(), rows, strict=True)] == rows  # padding at the end
        assert rows == sorted(rows)


@given(sizes=sizes, batch_size=st.integers(1, 12))
def test_a_batch_takes_all_requests_that_still_fit(sizes, batch_size):
    batches = make_requests(sizes).batches(batch_size, None, 0)
    for batch, following in itertools.pairwise(batches):
        assert (batch >= 0).sum() + len(requests_of(following)[0]) > batch_size


def test_the_order_depends_on_seed_and_epoch_alone():
    sizes = [1, 2, 3] * 20

    def order(seed, epoch):
        return [batch.tolist() for batch in make_requests(sizes).batches(10, seed, epoch)]

    assert order(3, 1) == order(3, 1)
    orders = [order(seed, epoch) for seed in (3, 4) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(None, 0) == order(None, 1)


def test_shuffling_moves_requests_far():
    found = np.concatenate([b.ravel() for b in Requests(np.arange(1001)).batches(100, 0, 0)])
    assert abs(np.corrcoef(found, np.arange(1000))[0, 1]) < 0.2


def test_requests_of_one_size_share_batches_so_that_little_is_padding():
    sizes = np.random.default_rng(0).choice([1, 1, 1, 2, 16], 3000)
    batches = make_requests(sizes).batches(64, 0, 0)
    assert sum(batch.size for batch in batches) < 1.1 * sizes.sum()
    widths = [batch.shape[1] for batch in batches]
    assert widths != sorted(widths)  # sizes do not come one after the other


@pytest.mark.parametrize("setting", [{"gap_s": -1}, {"max_candidates": 1}, {"gap": 60}])
def test_a_grouping_that_is_none_is_refused(setting):
    with pytest.raises(ValidationError):
        SessionGrouping(**setting)
