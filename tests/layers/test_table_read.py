"""Reads from tables equal the softmax written out, for values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from torch.testing import assert_close

from infnet.layers.simd import LANES, begin, exp, load, store
from infnet.layers.table_read import Rows, TableTokens, plain_reads, reads_tables


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_groups(readers, sizes, longest, width, seed, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    groups = []
    for i, m in enumerate(sizes):
        starts = torch.from_numpy(np.cumsum([0, *rng.integers(0, longest + 1, readers)]))
        rows = torch.from_numpy(rng.integers(0, 5, int(starts[-1])))
        table = randn(5, m, width, seed=seed + i, dtype=dtype).requires_grad_()
        groups.append((table, Rows(rows, starts)))
    return groups


def by_hand(queries, groups):
    out = []
    for r, own in enumerate(queries):
        tokens = torch.cat([t[s.rows[s.starts[r] : s.starts[r + 1]]].flatten(0, 1) for t, s in groups])
        out.append((own @ tokens.T).softmax(dim=-1) @ tokens if len(tokens) else own * 0)
    return torch.stack(out)


@settings(max_examples=60, deadline=None)
@given(
    readers=st.integers(1, 5),
    q=st.integers(1, 13),
    width=st.sampled_from([3, 16, 32]),
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    longest=st.sampled_from([0, 1, 7, 40]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    reads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_equals_the_softmax_written_out(readers, q, width, sizes, longest, scale, reads, seed):
    groups = make_groups(readers, sizes, longest, width, seed)
    queries = (scale * randn(readers, 1, q, width, seed=seed + 9)).requires_grad_()
    tokens, inputs = TableTokens(*groups), [queries, *(table for table, _ in groups)]
    fast, slow, of_fast, of_slow = [], [], queries, queries
    for _ in range(reads):
        fast.append(tokens.read([of_fast])[0])
        slow.append(by_hand(of_slow[:, 0], groups)[:, None])
        of_fast, of_slow = of_fast + fast[-1], of_slow + slow[-1]
    weights = randn(readers, 1, q, width, seed=seed + 10)
    for a, b in zip(fast, slow, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)
    found, wanted = (
        torch.autograd.grad((sum(reads) * weights).sum(), inputs, allow_unused=True) for reads in (fast, slow)
    )
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-8)


def test_single_precision_is_as_exact_as_its_digits():
    groups = make_groups(6, (1, 4, 2), 30, 16, 0, torch.float32)
    queries = randn(6, 1, 10, 16, seed=1, dtype=torch.float32)
    (read,) = TableTokens(*groups).read([queries])
    exact = by_hand(queries[:, 0].double(), [(table.double(), rows) for table, rows in groups])
    assert_close(read[:, 0].double(), exact, rtol=1e-5, atol=2e-6)


def test_queries_of_several_kinds_are_read_at_once():
    groups = make_groups(4, (2,), 6, 16, 3)
    constant, own = randn(1, 1, 2, 16, seed=1), randn(4, 3, 2, 16, seed=2)
    for_all, for_each = TableTokens(*groups).read([constant, own])
    assert_close(for_all[:, 0], by_hand(constant[0].expand(4, -1, -1), groups))
    assert_close(for_each.flatten(1, 2), by_hand(own.flatten(1, 2), groups))


@pytest.mark.parametrize(("dtype", "lowest", "digits"), [(np.float32, -85, 2e-7), (np.float64, -700, 4e-16)])
def test_exp_is_right_to_the_last_digits(dtype, lowest, digits):
    @njit
    def exps(numbers):
        for at in range(0, len(numbers), LANES):
            store(begin(numbers), at, exp(load(begin(numbers), at)))

    numbers = np.concatenate([np.linspace(lowest, 0, 4096 - LANES), [-np.inf] * LANES]).astype(dtype)
    wanted = np.exp(numbers.astype(np.longdouble))
    exps(numbers)
    present = wanted > 0
    assert (np.abs(numbers - wanted)[present] / wanted[present]).max() < digits
    assert (numbers[~present] == 0).all()


def test_the_same_read_gives_the_same_bits():
    def once():
        groups = make_groups(40, (2, 1), 20, 16, 5, torch.float32)
        queries, gate = (randn(40, 1, q, 16, seed=q, dtype=torch.float32).requires_grad_() for q in (5, 1))
        (read,) = TableTokens(*groups).read([queries], gate)
        return read, *torch.autograd.grad(read.square().sum(), [queries, gate, *(table for table, _ in groups)])

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_none_shows_in_its_reader_alone(value):
    groups = make_groups(3, (1,), 9, 16, 1)
    with torch.no_grad():
        groups[0][0][...] = groups[0][0].abs() + 0.1
    queries = randn(3, 1, 4, 16, seed=2)
    queries[1, 0, 2, 5] = value
    (read,) = TableTokens(*groups).read([queries])
    is_number = read.isfinite().all(dim=-1)[:, 0]
    assert groups[0][1].starts.diff()[1] > 0
    assert is_number.tolist() == [[True] * 4, [True, True, False, True], [True] * 4]


@settings(max_examples=30, deadline=None)
@given(
    levels=st.lists(st.sampled_from([1, 3]), min_size=1, max_size=3),
    gate_level=st.sampled_from([1, 3]),
    width=st.sampled_from([3, 16]),
    seed=st.integers(0, 99),
)
def test_gated_reads_equal_reads_of_gated_tokens(levels, gate_level, width, seed):
    groups = make_groups(4, (1, 2), 9, width, seed)
    queries = [randn(4, a, 7, width, seed=seed + i).requires_grad_() for i, a in enumerate(levels)]
    gate = randn(4, gate_level, 1, width, seed=seed + 8).requires_grad_()
    inputs = [*queries, gate, *(table for table, _ in groups)]
    fast = TableTokens(*groups).read(queries, gate)
    slow = []
    for q in queries:
        level = max(q.shape[1], gate_level)
        pairs = [(q.expand(-1, level, -1, -1)[:, c], gate.expand(-1, level, -1, -1)[:, c]) for c in range(level)]
        slow.append(torch.stack([by_hand(own * g, groups) * g for own, g in pairs], dim=1))
    assert_close(fast, slow)
    for got, wanted in zip(
        *(torch.autograd.grad([x.square().sum() for x in r], inputs) for r in (fast, slow)), strict=True
    ):
        assert_close(got, wanted)


def test_a_reader_may_have_any_number_of_tokens():
    # Work space this large is mapped by itself, so that a use after its end would be a fault.
    table = randn(50, 1, 16, seed=1).requires_grad_()
    rows = Rows(torch.arange(400_003) % 50, torch.tensor([0, 400_000, 400_003]))
    queries = randn(2, 1, 3, 16, seed=2).requires_grad_()
    (read,) = TableTokens((table, rows)).read([queries])
    # 8,000 of each token weigh as much as one of each.
    few = by_hand(queries[:, 0], [(table, Rows(torch.arange(53) % 50, torch.tensor([0, 50, 53])))])
    assert_close(read[:, 0], few)
    for got, wanted in zip(*(torch.autograd.grad(r.sum(), [queries, table]) for r in (read, few)), strict=True):
        assert_close(got, wanted)


def test_plain_reads_leave_the_kernel_out_until_they_end():
    tensor = randn(2, 16, seed=0)
    assert reads_tables(tensor)
    with plain_reads():
        assert not reads_tables(tensor)
        with pytest.raises(ZeroDivisionError), plain_reads():
            raise ZeroDivisionError
        assert not reads_tables(tensor)
    assert reads_tables(tensor)
