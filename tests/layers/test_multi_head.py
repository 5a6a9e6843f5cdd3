import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multi_head_oracle import attended
from torch.testing import assert_close

from infnet.layers.multi_head import candidate_multi_head, causal_mask, multi_head

R, N, Q, n, M = 3, 2, 4, 5, 3  # all different but one pair: a swapped axis fails instead of broadcasting
heads = st.sampled_from([1, 2, 3])


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def random_mask(*shape, seed=0):
    """At least one True per row."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., seed % shape[-1]] = True
    return mask


def same_with_gradients(found, plain, inputs):
    assert_close(found, plain)
    weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs) for out in (found, plain)]
    assert_close(*gradients)


@settings(max_examples=15)
@given(num_heads=heads, seed=st.integers(0, 99))
def test_equals_attention_written_out(num_heads, seed):
    inputs = randn(R, Q, 6, seed=seed), randn(R, n, 6, seed=seed + 1), randn(R, n, 6, seed=seed + 2)
    visible = random_mask(R, Q, n, seed=seed)

    def one(r, q):
        seen = visible[r, q].nonzero()[:, 0].tolist()
        keys, values = ([x[r, j] for j in seen] for x in inputs[1:])
        return attended(inputs[0][r, q], keys, values, num_heads)

    plain = torch.stack([torch.stack([one(r, q) for q in range(Q)]) for r in range(R)])
    same_with_gradients(multi_head(*inputs, visible, num_heads), plain, inputs)


@settings(max_examples=15)
@given(num_heads=heads, seed=st.integers(0, 99))
def test_candidates_read_what_they_share_and_their_own_as_one(num_heads, seed):
    queries = randn(R, N, Q, 6, seed=seed)
    shared = randn(R, n, 6, seed=seed + 1), randn(R, n, 6, seed=seed + 2)
    own = randn(R, N, M, 6, seed=seed + 3), randn(R, N, M, 6, seed=seed + 4)
    present, visible = random_mask(R, n, seed=seed), random_mask(Q, M, seed=seed)

    def one(r, c, q):
        here, seen = present[r].nonzero()[:, 0].tolist(), visible[q].nonzero()[:, 0].tolist()
        keys, values = ([s[r, j] for j in here] + [o[r, c, j] for j in seen] for s, o in zip(shared, own, strict=True))
        return attended(queries[r, c, q], keys, values, num_heads)

    plain = torch.stack(
        [torch.stack([torch.stack([one(r, c, q) for q in range(Q)]) for c in range(N)]) for r in range(R)]
    )
    found = candidate_multi_head(queries, shared, own, present, visible, num_heads)
    same_with_gradients(found, plain, [queries, *shared, *own])


def test_a_request_without_anything_present_reads_its_candidates_own():
    queries, own = randn(R, N, 1, 6), (randn(R, N, 1, 6, seed=1), randn(R, N, 1, 6, seed=2))
    shared = randn(R, n, 6, seed=3), randn(R, n, 6, seed=4)
    nothing, itself = torch.zeros(R, n, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    found = candidate_multi_head(queries, shared, own, nothing, itself, 2)
    assert_close(found, own[1])
    assert torch.autograd.grad(found.sum(), shared[0])[0].eq(0).all()


def test_a_token_sees_itself_and_what_is_present_after_it():
    place = torch.tensor([2, 0, 3, 1])
    present = torch.tensor([[True, True, True, False], [False, True, False, False]])
    found = causal_mask(place, present, 3)
    for r in range(2):
        for q in range(3):
            for j in range(4):
                assert found[r, q, j] == (j == q or (bool(present[r, j]) and place[j] > place[q]))
