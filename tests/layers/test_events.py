import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from event_oracle import event_tokens
from infnet.layers.attention import HistoryTokens
from infnet.layers.events import EventTokens, pack_requests
from random_batches import as_double, make_batch, make_layout

WIDTH = 4
layouts = st.builds(
    make_layout,
    tags=st.booleans(),
    lengths=st.sampled_from([(1,), (5, 3), (2, 4, 3)]),
    gap=st.booleans(),
    position=st.booleans(),
)


def make_module(layout, combine="concat", chunk_size=512, seed=0):
    torch.manual_seed(seed)
    module = EventTokens(layout, WIDTH, combine).double()
    with torch.no_grad():  # extra embeddings begin close to zero
        for parameter in [*module.position, *module.gap]:
            parameter.mul_(50)
    module.chunk_size = chunk_size
    return module


def make_embedded(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(batch.rows), WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)


def unpacked(sequence):
    """Per request its tokens (n, d), taken back from the chunks."""
    packed, out, at = sequence.packed, {}, 0
    for (requests, _), tokens in zip(packed.chunks, sequence.chunks(), strict=True):
        for row in range(requests):
            out[int(packed.order[at])] = tokens[row, : int(packed.lengths[at])]
            at += 1
    return [out[r] for r in range(at)]


def gradients_of(loss, module, embedded):
    inputs = [embedded, *(p for p in module.parameters() if p.numel())]
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def weighted(tokens):
    return sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in tokens)


@settings(max_examples=50)
@given(
    layout=layouts,
    combine=st.sampled_from(["sum", "concat"]),
    R=st.integers(1, 6),
    chunk_size=st.sampled_from([1, 2, 512]),
    seed=st.integers(0, 99),
)
def test_the_chunks_hold_every_events_token_written_out_with_the_same_gradients(layout, combine, R, chunk_size, seed):
    batch, module = as_double(make_batch(layout, R, 1, seed)), make_module(layout, combine, chunk_size, seed)
    embedded = make_embedded(batch, seed)
    found = unpacked(module(embedded, batch))
    plain = [
        torch.stack(tokens) if tokens else torch.zeros(0, WIDTH, dtype=torch.float64)
        for behaviours in event_tokens(module, layout, embedded, batch)
        for tokens in [[token for tokens in behaviours for token in tokens]]
    ]
    assert_close(found, plain)
    if sum(map(len, plain)):
        fast, slow = (gradients_of(weighted(tokens), module, embedded) for tokens in (found, plain))
        assert_close(fast, slow)


@settings(max_examples=30)
@given(layout=layouts, R=st.integers(1, 6), q=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_size_of_a_chunk_changes_nothing_that_is_read(layout, R, q, seed):
    batch = as_double(make_batch(layout, R, 1, seed))
    embedded = make_embedded(batch, seed)
    queries = torch.randn(R, 1, q, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    results = []
    for chunk_size in (512, 1, 2, 3):
        module = make_module(layout, chunk_size=chunk_size, seed=seed)
        (read,) = HistoryTokens(module(embedded, batch)).read([queries])
        results.append([read, *gradients_of(weighted([read]), module, embedded)])
    for other in results[1:]:
        assert_close(other, results[0])


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_what_stands_in_padding_is_invisible(combine):
    layout = make_layout(tags=True, gap=True, position=True)
    batch = as_double(make_batch(layout, 5, 1))
    absent = ~batch.history_present
    other = dataclasses.replace(
        batch,
        history=torch.where(absent, (batch.history + 3) % len(batch.event_ids), batch.history),
        history_gap=torch.where(absent, (batch.history_gap + 9) % 32, batch.history_gap),
    )
    assert not torch.equal(other.history, batch.history)
    module, embedded = make_module(layout, combine), make_embedded(batch)
    assert_close(unpacked(module(embedded, other)), unpacked(module(embedded, batch)), rtol=0, atol=0)


def test_requests_without_events_have_no_tokens_and_read_zeros():
    layout = make_layout(gap=True)
    batch = as_double(make_batch(layout, 4, 1))
    for nobody in (torch.tensor([True, False, True, False]), torch.ones(4, dtype=torch.bool)):
        present = batch.history_present & ~nobody[:, None]
        few = dataclasses.replace(batch, history_present=present)
        for chunk_size in (512, 1):
            module, embedded = make_module(layout, chunk_size=chunk_size), make_embedded(batch)
            sequence = module(embedded, few)
            assert [len(tokens) for tokens in unpacked(sequence)] == present.sum(1).tolist()
            (read,) = HistoryTokens(sequence).read([torch.ones(4, 1, 2, WIDTH, dtype=torch.float64)])
            assert read[nobody].eq(0).all()
            assert read[~present.any(1)].eq(0).all()
            assert all(g.isfinite().all() for g in gradients_of(read.sum(), module, embedded))


def test_a_token_of_the_same_item_differs_by_behaviour_only_if_each_projects_for_itself():
    layout = make_layout(lengths=(2, 2))
    batch = as_double(make_batch(layout, 3, 1))
    batch = dataclasses.replace(
        batch, history=torch.zeros_like(batch.history), history_present=torch.ones_like(batch.history_present)
    )
    for combine, differs in (("concat", True), ("sum", False)):
        tokens = unpacked(make_module(layout, combine)(make_embedded(batch), batch))[0]
        assert torch.equal(tokens[0], tokens[1])
        assert torch.equal(tokens[0], tokens[2]) != differs


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12), chunk_size=st.sampled_from([1, 2, 5, 512]))
def test_packing_gives_every_event_a_place_of_its_own_in_its_requests_row(lengths, chunk_size):
    R = len(lengths)
    packed = pack_requests(torch.tensor(lengths), chunk_size)
    assert sorted(packed.order.tolist()) == list(range(R))
    assert packed.lengths.tolist() == [lengths[r] for r in packed.order]
    assert packed.lengths.tolist() == (sorted(lengths) if len(packed.chunks) > 1 else lengths)
    assert sum(n for n, _ in packed.chunks) == R
    assert packed.num_slots == sum(n * length for n, length in packed.chunks)

    begins, at, slot = {}, 0, 0
    for requests, length in packed.chunks:
        members = packed.order[at : at + requests].tolist()
        assert length == max(1, *(lengths[r] for r in members))
        for r in members:
            begins[r] = slot
            slot += length
        at += requests
    wanted = [begins[r] + k for r in range(R) for k in range(lengths[r])]
    assert packed.slots.tolist() == wanted


def test_packing_costs_little_padding_however_unequal_histories_are():
    lengths = torch.tensor([0, 100] * 500)
    assert pack_requests(lengths, 100).num_slots <= int(lengths.sum()) + 1000
