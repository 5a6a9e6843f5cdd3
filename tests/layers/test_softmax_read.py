import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from infnet.layers.softmax_read import recorded_weights, softmax_read

R, A, Q, D = 3, 2, 4, 5  # all different: a swapped axis fails instead of broadcasting


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def make_groups(sizes):
    """One group for each (b, n), b = A or 1."""
    return [randn(R, b, n, D, seed=10 + i) for i, (b, n) in enumerate(sizes)]


def written_out(queries, groups, bias=None):
    tokens = torch.cat([group.expand(-1, queries.shape[1], -1, -1) for group in groups], dim=2)
    logits = torch.einsum("raqd,rand->raqn", queries, tokens)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return torch.einsum("raqn,rand->raqd", weights, tokens)


def make_bias(num, seed=0):
    """Padding: -inf in places, at least one finite per row."""
    absent = torch.rand(R, num, generator=torch.Generator().manual_seed(seed)) < 0.5
    absent[:, seed % num] = False
    return torch.zeros(R, num, dtype=torch.float64).masked_fill(absent, -torch.inf)[:, None, None]


def gradients_of(loss, inputs):
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def weighted(out, seed=5):
    return (out * randn(*out.shape, seed=seed).detach()).sum()


group_sizes = st.lists(st.tuples(st.sampled_from([A, 1]), st.integers(0, 4)), min_size=1, max_size=3).filter(
    lambda sizes: sum(n for _, n in sizes) > 0
)


@given(sizes=group_sizes, has_bias=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_softmax_written_out_with_the_same_gradients(sizes, has_bias, seed):
    queries, groups = randn(R, A, Q, D, seed=seed), make_groups(sizes)
    bias = make_bias(sum(n for _, n in sizes), seed) if has_bias else None
    read, again = softmax_read(queries, groups, bias)
    plain = written_out(queries, groups, bias)
    assert_close(read, plain)
    assert_close(again, groups, rtol=0, atol=0)
    assert_close(gradients_of(weighted(read), [queries, *groups]), gradients_of(weighted(plain), [queries, *groups]))


@given(sizes=group_sizes, reads=st.integers(2, 4), seed=st.integers(0, 99))
def test_reads_one_after_the_other_hand_their_gradients_on(sizes, reads, seed):
    groups, bias = make_groups(sizes), make_bias(sum(n for _, n in sizes), seed)
    queries = [randn(R, A, 1 + i, D, seed=seed + i) for i in range(reads)]
    total, plain, tokens = 0.0, 0.0, list(groups)
    out = plain_out = torch.zeros(R, A, 1, D, dtype=torch.float64)
    for i, query in enumerate(queries):  # each depends on what the one before read
        out, tokens = softmax_read(query + 0.1 * out.mean(dim=2, keepdim=True), tokens, bias)
        plain_out = written_out(query + 0.1 * plain_out.mean(dim=2, keepdim=True), groups, bias)
        total, plain = total + weighted(out, i), plain + weighted(plain_out, i)
    assert_close(total, plain)
    assert_close(gradients_of(total, [*queries, *groups]), gradients_of(plain, [*queries, *groups]))


def test_tokens_that_were_read_can_be_used_for_something_else():
    queries, groups = randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])
    read, (first, second) = softmax_read(queries, groups)
    found = weighted(read) + weighted(first, 1) + weighted(second, 2)
    plain = weighted(written_out(queries, groups)) + weighted(groups[0], 1) + weighted(groups[1], 2)
    assert_close(gradients_of(found, [queries, *groups]), gradients_of(plain, [queries, *groups]))


def test_a_read_nobody_uses_passes_on_what_comes_from_its_tokens_alone():
    queries, groups = randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])
    _, (first, _) = softmax_read(queries, groups)
    found = gradients_of(weighted(first, 1), [queries, *groups])
    assert_close(found, gradients_of(weighted(groups[0], 1), [queries, *groups]))


def test_only_one_of_two_groups_is_used_later():
    queries, groups = randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])
    read, (_, second) = softmax_read(queries, groups)
    found = gradients_of(weighted(read) + weighted(second, 1), [queries, *groups])
    plain = weighted(written_out(queries, groups)) + weighted(groups[1], 1)
    assert_close(found, gradients_of(plain, [queries, *groups]))


@pytest.mark.parametrize("frozen", ["queries", "groups"])
def test_constants_need_no_gradient(frozen):
    queries, groups = randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])
    if frozen == "queries":
        queries = queries.detach()
    else:
        groups = [group.detach() for group in groups]
    inputs = [tensor for tensor in (queries, *groups) if tensor.requires_grad]
    found = gradients_of(weighted(softmax_read(queries, groups)[0]), inputs)
    assert_close(found, gradients_of(weighted(written_out(queries, groups)), inputs))


def test_gradients_are_those_of_finite_differences():
    bias = make_bias(5, 1)
    queries, groups = randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])

    def two_reads(queries, *groups):
        first, again = softmax_read(queries, groups, bias)
        second, again = softmax_read(queries * 2, again, bias)
        return first, second, *again

    assert gradcheck(two_reads, (queries, *groups))


def test_what_is_biased_away_is_invisible_and_gets_no_gradient():
    bias, queries, (tokens,) = make_bias(6, 2), randn(R, A, Q, D), make_groups([(1, 6)])
    absent = bias.squeeze((1, 2)).isinf()
    other = torch.where(absent[:, None, :, None], randn(*tokens.shape, seed=77), tokens)
    read = softmax_read(queries, [tokens], bias)[0]
    assert_close(read, softmax_read(queries, [other], bias)[0])
    (gradient,) = gradients_of(weighted(read), [tokens])
    assert gradient[:, 0][absent].eq(0).all()
    assert gradient[:, 0][~absent].ne(0).all()


def test_large_logits_overflow_nothing():
    queries, groups = 1e3 * randn(R, A, Q, D), make_groups([(1, 3), (A, 2)])
    read, _ = softmax_read(queries, groups)
    assert read.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients_of(weighted(read), groups))


def test_autocast_reads_in_single_precision():
    queries, groups = randn(R, A, Q, D).float(), [group.float() for group in make_groups([(1, 3), (A, 2)])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read, again = softmax_read(queries.bfloat16(), [group.bfloat16() for group in groups])
    assert {read.dtype, *(group.dtype for group in again)} == {torch.float32}
    rounded = written_out(queries.bfloat16().float(), [group.bfloat16().float() for group in groups])
    assert_close(read, rounded, rtol=1e-5, atol=1e-6)


@given(sizes=group_sizes, seed=st.integers(0, 99))
def test_recorded_weights_are_those_that_were_read_with(sizes, seed):
    queries, groups = randn(R, A, Q, D, seed=seed), make_groups(sizes)
    bias = make_bias(sum(n for _, n in sizes), seed)
    with recorded_weights() as record:
        first, again = softmax_read(queries, groups, bias)
        second, _ = softmax_read(queries + first, again)
    softmax_read(queries, groups, bias)
    tokens = torch.cat([group.expand(-1, A, -1, -1) for group in groups], dim=2)
    assert len(record) == 2
    for weights, read in zip(record, (first, second), strict=True):
        assert_close(weights @ tokens, read)
        assert_close(weights.sum(dim=-1), torch.ones(R, A, Q, dtype=torch.float64))
    assert record[0][bias.isinf().expand_as(record[0])].eq(0).all()
