import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from event_oracle import event_tokens
from infnet.layers.attention import CrossAttention, FieldTokens, HistoryTokens, TaskTokens, cross_attend, project
from infnet.layers.events import EventTokens
from random_batches import as_double, make_batch, make_layout

WIDTH = 4
R, N = 3, 5


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def softmax_average(query, tokens):
    """One query (d,), tokens as a list of (d,)."""
    if not tokens:
        return torch.zeros_like(query)
    stacked = torch.stack(list(tokens))
    return (stacked @ query).softmax(0) @ stacked


def by_hand(queries, tokens_of, num_candidates):
    """Queries (R or 1, a, q, d) and the tokens that candidate c of request r has -> (R, N, q, d), one at a time."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([softmax_average(q, tokens_of(r, c)) for q in _of(queries, r, c)])
                    for c in range(num_candidates)
                ]
            )
            for r in range(R)
        ]
    )


def _of(queries, r, c):
    return queries[r % queries.shape[0], c % queries.shape[1]]


def gradients_of(outputs, inputs):
    weights = [torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def agree(fast, slow, inputs):
    fast = [f.expand_as(s) for f, s in zip(fast, slow, strict=True)]  # what all candidates share stands there once
    assert_close(fast, slow)
    assert_close(gradients_of(fast, inputs), gradients_of(slow, inputs))


# Queries of a request (a = 1), of a candidate (a = N), and learned constants (1, 1).
levels = st.lists(st.sampled_from(["request", "candidate", "constant"]), min_size=1, max_size=4)


def make_queries(levels, seed):
    shape = {"request": (R, 1), "candidate": (R, N), "constant": (1, 1)}
    return [randn(*shape[level], 1 + i, WIDTH, seed=seed + i) for i, level in enumerate(levels)]


@settings(max_examples=40)
@given(
    levels=levels,
    request=st.integers(0, 3),
    own=st.lists(st.integers(0, 3), min_size=1, max_size=2).filter(any),
    reads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_fields_are_read_as_if_each_candidate_held_them_all(levels, request, own, reads, seed):
    of_request = randn(R, request, WIDTH, seed=seed + 50)
    of_candidate = [randn(R, N, num, WIDTH, seed=seed + 51 + i) for i, num in enumerate(own)]
    tokens, queries = FieldTokens(of_request, *of_candidate), make_queries(levels, seed)
    fast = [read for _ in range(reads) for read in tokens.read(queries)]

    def tokens_of(r, c):
        return [*of_request[r], *(token for group in of_candidate for token in group[r, c])]

    slow = [by_hand(q, tokens_of, N) for q in queries] * reads
    assert {f.shape[:2] for f in fast} == {(R, N)}
    agree(fast, slow, [of_request, *of_candidate, *queries])


@settings(max_examples=25)
@given(
    levels=levels,
    chunk_size=st.sampled_from([1, 2, 512]),
    gap=st.booleans(),
    reads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_history_is_read_as_its_events_one_by_one(levels, chunk_size, gap, reads, seed):
    torch.manual_seed(seed)
    layout = make_layout(lengths=(4, 3), gap=gap)
    batch, module = as_double(make_batch(layout, R, N, seed)), EventTokens(layout, WIDTH).double()
    module.chunk_size = chunk_size
    embedded, queries = randn(len(batch.rows), WIDTH, seed=seed + 50), make_queries(levels, seed)
    history = HistoryTokens(module(embedded, batch))
    fast = [read for _ in range(reads) for read in history.read(queries)]
    events = event_tokens(module, layout, embedded, batch)
    slow = [
        by_hand(q, lambda r, c: [token for tokens in events[r] for token in tokens], q.shape[1]) for q in queries
    ] * reads
    assert [f.shape[1] for f in fast] == [q.shape[1] for q in queries] * reads  # read once per request where possible
    agree(fast, slow, [embedded, *queries])


@pytest.mark.parametrize("levels", [("candidate",), ("constant", "request", "candidate")])
def test_task_tokens_are_the_same_for_all_or_a_candidates_own(levels):
    queries = make_queries(levels, 0)
    constant = randn(1, 1, 3, WIDTH, seed=50)
    agree(TaskTokens(constant).read(queries), [by_hand(q, lambda r, c: [*constant[0, 0]], N) for q in queries], queries)

    queries = [q for q in queries if q.shape[0] == R]
    own = randn(R, N, 3, WIDTH, seed=51)
    tokens = TaskTokens(own)
    fast = [*tokens.read(queries), *tokens.read(queries)]
    agree(fast, [by_hand(q, lambda r, c: [*own[r, c]], N) for q in queries] * 2, [own, *queries])


def token_sets(seed=0):
    """One of each kind, and what every candidate finds in it."""
    torch.manual_seed(seed)
    layout = make_layout(lengths=(4, 3))
    batch, module = as_double(make_batch(layout, R, N, seed)), EventTokens(layout, WIDTH).double()
    embedded = randn(len(batch.rows), WIDTH, seed=seed + 50).detach()
    events = event_tokens(module, layout, embedded, batch)
    of_request, own, tasks = randn(R, 2, WIDTH, seed=1), randn(R, N, 3, WIDTH, seed=2), randn(R, N, 3, WIDTH, seed=3)
    return {
        "history": (HistoryTokens(module(embedded, batch)), lambda r, c: [t for tokens in events[r] for t in tokens]),
        "fields": (FieldTokens(of_request, own), lambda r, c: [*of_request[r], *own[r, c]]),
        "tasks": (TaskTokens(tasks), lambda r, c: [*tasks[r, c]]),
    }


kinds = pytest.mark.parametrize("kind", ["history", "fields", "tasks"])


@kinds
def test_a_requests_queries_read_what_they_would_read_for_each_candidate(kind):
    tokens, _ = token_sets()[kind]
    queries = randn(R, 1, 2, WIDTH, seed=9)
    (shared,), (own,) = tokens.read([queries]), tokens.read([queries.expand(-1, N, -1, -1)])
    assert own.shape == (R, N, 2, WIDTH)
    assert_close(shared.expand_as(own), own)


def attended(tokens, arrows, queries, gate=None):
    """What each of the queries gets by its arrow."""
    by_pair = {(str(i), "x"): arrow for i, arrow in enumerate(arrows)}
    kinds = {str(i): query for i, query in enumerate(queries)}
    found = cross_attend({"x": tokens}, kinds, by_pair, {} if gate is None else {"x": gate})
    return [project([found[pair]], [arrow]) for pair, arrow in by_pair.items()]


@kinds
@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_folded_attention_equals_gating_and_projecting_every_token(kind, num_heads, gated):
    torch.manual_seed(1)
    tokens, tokens_of = token_sets()[kind]
    arrows = [CrossAttention(WIDTH, num_heads).double() for _ in range(2)]
    queries = make_queries(["candidate", "request"], 20)
    gate = torch.rand(R, N, 1, WIDTH, dtype=torch.float64) + 0.5 if gated else None
    fast = attended(tokens, arrows, queries, gate)

    def head(arrow, h, query, own):
        if not own:
            return torch.zeros(WIDTH // num_heads, dtype=torch.float64)
        gated_tokens = torch.stack(own)
        logits = (gated_tokens @ arrow.key[h]) @ (query @ arrow.query[h]) / math.sqrt(WIDTH // num_heads)
        return logits.softmax(0) @ (gated_tokens @ arrow.value[h])

    for arrow, query, found in zip(arrows, queries, fast, strict=True):
        for r in range(R):
            for c in range(N):
                own = [t if gate is None else t * gate[r, c, 0] for t in tokens_of(r, c)]
                for i, q in enumerate(_of(query, r, c)):
                    wanted = torch.cat([head(arrow, h, q, own) for h in range(num_heads)])
                    assert_close(found[r, c % found.shape[1], i], wanted)


def test_every_arrow_weight_gets_its_gradient():
    tokens, _ = token_sets()["fields"]
    arrows = [CrossAttention(WIDTH, 2).double() for _ in range(2)]
    out = attended(tokens, arrows, make_queries(["candidate", "request"], 20))
    sum((o * randn(*o.shape, seed=i).detach()).sum() for i, o in enumerate(out)).backward()
    assert all(parameter.grad.abs().sum() > 0 for arrow in arrows for parameter in arrow.parameters())
