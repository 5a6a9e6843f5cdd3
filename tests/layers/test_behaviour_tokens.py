import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from infnet.layers.behaviour_tokens import BehaviourTokens
from infnet.layers.events import PaddedHistory

R, N, F, WIDTH = 4, 3, 2, 5
LENGTHS = (4, 3)
PRESENT = torch.tensor([[4, 3], [2, 0], [0, 1], [0, 0]])  # events of each request and behaviour


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def history_of(tokens):
    present = torch.cat([torch.arange(n) < PRESENT[:, f, None] for f, n in enumerate(LENGTHS)], dim=1)
    return PaddedHistory(tokens, present, LENGTHS)


def average(query, tokens):
    """One query (d,), tokens as a list of (d,)."""
    if not tokens:
        return torch.zeros_like(query)
    stacked = torch.stack(tokens)
    return (stacked @ query).softmax(0) @ stacked


def rewritten(tokens, affine, r, c):
    """The tokens of candidate c of request r by behaviour, scaled and shifted one by one."""
    A, B = (torch.ones(1, 1, F, WIDTH), torch.zeros(1, 1, F, WIDTH)) if affine is None else affine
    c = c % A.shape[1]
    parts = tokens.split(LENGTHS, dim=1)
    return [
        [parts[f][r, i] * A[r % len(A), c, f] + B[r % len(B), c, f] for i in range(PRESENT[r, f])] for f in range(F)
    ]


def by_hand(queries, tokens_of):
    """Queries (R or 1, a, q, d) -> (R, N, q, d), one at a time."""

    def row(r, c):
        return torch.stack([average(q, tokens_of(r, c)) for q in queries[r % len(queries), c % queries.shape[1]]])

    return torch.stack([torch.stack([row(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=30)
@given(
    levels=st.lists(st.sampled_from([(1, 1), (R, 1), (R, N)]), min_size=1, max_size=3),
    own_level=st.sampled_from([None, (R, 1), (R, N)]),
    affine_level=st.sampled_from([None, 1, N]),
    seed=st.integers(0, 99),
)
def test_events_are_read_as_if_they_had_been_scaled_and_shifted(levels, own_level, affine_level, seed):
    tokens = randn(R, sum(LENGTHS), WIDTH, seed=seed)
    queries = [randn(*level, 1 + i, WIDTH, seed=seed + 1 + i) for i, level in enumerate(levels)]
    own = [] if own_level is None else [randn(*own_level, 2, WIDTH, seed=seed + 10 + f) for f in range(F)]
    affine = None
    if affine_level is not None:
        affine = tuple(randn(R, affine_level, F, WIDTH, seed=seed + 20 + i) for i in range(2))
    together, alone = BehaviourTokens(history_of(tokens)).read(queries, own, affine)

    slow = [by_hand(q, lambda r, c: [x for events in rewritten(tokens, affine, r, c) for x in events]) for q in queries]
    slow += [by_hand(q, lambda r, c, f=f: rewritten(tokens, affine, r, c)[f]) for f, q in enumerate(own)]
    highest = [max(q.shape[1], affine_level or 1) for q in (*queries, *own)]
    assert [read.shape[1] for read in (*together, *alone)] == highest  # once per request where possible
    fast = [read.expand(R, N, -1, -1) for read in (*together, *alone)]
    assert_close(fast, slow)
    inputs = [tokens, *queries, *own, *(affine or ())]
    weights = [torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out) for out in slow]
    gradients = [
        torch.autograd.grad(
            sum((x * w).sum() for x, w in zip(out, weights, strict=True)), inputs, materialize_grads=True
        )
        for out in (fast, slow)
    ]
    assert_close(*gradients)


@pytest.mark.parametrize("affine_level", [None, N])
def test_padding_is_invisible(affine_level):
    tokens, query = randn(R, sum(LENGTHS), WIDTH, seed=0), randn(R, N, 2, WIDTH, seed=1)
    affine = None
    if affine_level is not None:
        affine = (randn(R, affine_level, F, WIDTH, seed=2), randn(R, affine_level, F, WIDTH, seed=3))
    history = history_of(tokens)
    other = history_of(torch.where(history.present[..., None], tokens, 1e3 * randn(*tokens.shape, seed=4)))
    reads = [BehaviourTokens(h).read([query], [query] * F, affine) for h in (history, other)]
    assert_close(*reads)
