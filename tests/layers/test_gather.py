import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from infnet.layers.gather import RowIndex, segment_starts

NUM_ROWS, WIDTH = 7, 3
int_types = st.sampled_from([torch.int32, torch.int64])
shapes = st.sampled_from([(0,), (1,), (20,), (4, 5), (2, 3, 2), (3, 0)])


def make_table(seed=0, num_rows=NUM_ROWS, dtype=torch.float64):
    return torch.randn(num_rows, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def gradients_of(outputs, tables):
    weights = [torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    return torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), tables)


@given(shape=shapes, dtype=int_types, seed=st.integers(0, 99))
def test_gathering_equals_indexing_with_the_same_gradient(shape, dtype, seed):
    rows = torch.randint(0, NUM_ROWS, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    table = make_table(seed)
    fast, plain = RowIndex(rows, NUM_ROWS).gather(table), table[rows.long()]
    assert_close(fast, plain, rtol=0, atol=0)
    assert_close(gradients_of([fast], [table]), gradients_of([plain], [table]))


@given(num=st.integers(0, 15), more=st.integers(0, 5), dtype=int_types, seed=st.integers(0, 99))
def test_placing_puts_each_row_at_its_place_and_passes_no_gradient_elsewhere(num, more, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, NUM_ROWS, (num,), dtype=dtype, generator=generator)
    places = torch.randperm(num + more, generator=generator)[:num]
    table = make_table(seed)
    fast = RowIndex(rows, NUM_ROWS).place(table, places, num + more)
    assert fast.shape == (num + more, WIDTH)
    plain = fast.detach().index_copy(0, places, table[rows.long()])  # others hold anything
    assert_close(fast, plain, rtol=0, atol=0)
    assert fast.isfinite().all()
    assert_close(gradients_of([fast], [table]), gradients_of([plain], [table]))


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6), dtype=int_types, seed=st.integers(0, 99))
def test_sums_are_those_of_each_bag_empty_ones_too(counts, dtype, seed):
    bags = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rows = torch.randint(0, NUM_ROWS, bags.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    table = make_table(seed)
    fast = RowIndex(rows, NUM_ROWS).sums(table, segment_starts(torch.tensor(counts)))
    plain = torch.stack([table[rows.long()[bags == bag]].sum(0) for bag in range(len(counts))])
    assert_close(fast, plain)
    assert_close(gradients_of([fast], [table]), gradients_of([plain], [table]))


def test_one_index_serves_several_tables_at_once():
    rows = torch.tensor([4, 1, 4, 0])
    index, tables = RowIndex(rows, NUM_ROWS), [make_table(1), make_table(2)]
    bags = torch.tensor([0, 0, 1, 3])
    fast = [index.gather(tables[0]), index.gather(tables[1]), index.sums(tables[0], torch.tensor([0, 2, 3, 3, 4]))]
    sums = torch.stack([tables[0][rows[bags == bag]].sum(0) for bag in range(4)])
    plain = [tables[0][rows], tables[1][rows], sums]
    assert_close(gradients_of(fast, tables), gradients_of(plain, tables))


def test_gradients_are_those_of_finite_differences():
    rows, places = torch.tensor([3, 3, 0, 6]), torch.tensor([1, 4, 0, 3])
    index, table = RowIndex(rows, NUM_ROWS), make_table()
    assert gradcheck(index.gather, table)
    assert gradcheck(lambda t: index.place(t, places, 6)[places], table)
    assert gradcheck(lambda t: index.sums(t, torch.tensor([0, 3, 3, 4])), table)


@given(num_rows=st.sampled_from([1, 2, 100, 1 << 20]), num=st.integers(0, 300), seed=st.integers(0, 9))
def test_entries_are_grouped_by_row_and_stay_in_order_within(num_rows, num, seed):
    rows = torch.randint(max(0, num_rows - 50), num_rows, (num,), generator=torch.Generator().manual_seed(seed))
    order, starts = RowIndex(rows, num_rows).segments
    assert torch.equal(order, rows.sort(stable=True).indices)
    assert starts.shape == (num_rows + 1,)
    assert torch.equal(starts[1:] - starts[:-1], torch.bincount(rows, minlength=num_rows))


def test_a_row_read_many_times_gets_the_same_gradient_bits_every_time():
    rows = torch.randint(0, 3, (5000,), generator=torch.Generator().manual_seed(0))
    table = make_table(num_rows=3, dtype=torch.float32)
    found = [gradients_of([RowIndex(rows, 3).gather(table)], [table])[0] for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_row_that_does_not_exist_is_no_silent_zero():
    with pytest.raises((IndexError, RuntimeError)):
        RowIndex(torch.tensor([0, NUM_ROWS]), NUM_ROWS).gather(make_table())
