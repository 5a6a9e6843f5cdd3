import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from infnet.layers.target_attention import TargetAttention


def attention_of(width, hidden, normalize=False, seed=0):
    torch.manual_seed(seed)
    attention = TargetAttention(width, hidden, normalize).double()
    with torch.no_grad():
        for layer in attention.rest:
            layer.slope.uniform_(-0.5, 1.5)
    return attention


def inputs_of(R, N, n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets, tokens = (
        torch.randn(R, k, d, generator=generator, dtype=torch.float64, requires_grad=True) for k in (N, n)
    )
    present = torch.arange(n) < torch.randint(0, n + 1, (R, 1), generator=generator)
    present[0] = False
    return targets, tokens, present


def written_out(attention, targets, tokens, present):
    """Pair by pair, the four vectors joined."""
    out = []
    for r in range(len(targets)):
        events = tokens[r][present[r]]
        for target in targets[r]:
            weights = []
            for event in events:
                x = attention.first(torch.cat([event, target, event - target, event * target]))
                for layer in attention.rest:
                    x = layer.linear(torch.where(x >= 0, x, layer.slope * x))
                weights.append(x[0])
            stacked = torch.stack(weights) if weights else targets.new_zeros(0)
            if attention.normalize:
                stacked = stacked.softmax(dim=0)
            out.append(sum((w * e for w, e in zip(stacked, events, strict=True)), start=target * 0))
    return torch.stack(out).view_as(targets)


@settings(max_examples=20)
@given(
    R=st.integers(1, 3),
    N=st.integers(1, 3),
    n=st.integers(1, 4),
    d=st.integers(1, 5),
    hidden=st.sampled_from([(3,), (1,), (4, 2), (3, 4, 2)]),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_network_written_out(R, N, n, d, hidden, normalize, seed):
    attention = attention_of(d, hidden, normalize, seed)
    targets, tokens, present = inputs_of(R, N, n, d, seed)
    fast, slow = (f(targets, tokens, present) for f in (attention, lambda *x: written_out(attention, *x)))
    assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    inputs = [targets, tokens, *attention.parameters()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_weights_give_sum_or_mean_pooling(normalize):
    attention = attention_of(4, (5,), normalize)
    torch.nn.init.zeros_(attention.rest[-1].linear.weight)
    torch.nn.init.ones_(attention.rest[-1].linear.bias)
    targets, tokens, present = inputs_of(3, 2, 6, 4)
    pooled = (tokens * present[..., None]).sum(1)
    if normalize:
        pooled = pooled / present.sum(1, keepdim=True).clamp(min=1)
    assert_close(attention(targets, tokens, present), pooled[:, None].expand(-1, 2, -1))


@pytest.mark.parametrize("normalize", [False, True])
def test_padding_is_invisible_and_nothing_reads_zeros(normalize):
    attention = attention_of(4, (5,), normalize)
    targets, tokens, present = inputs_of(3, 2, 6, 4)
    other = torch.where(present[..., None], tokens, torch.randn(3, 6, 4, dtype=torch.float64))
    read = attention(targets, tokens, present)
    assert_close(attention(targets, other, present), read)
    assert not read[0].any()


def test_the_order_of_events_changes_nothing():
    attention = attention_of(4, (5,))
    targets, tokens, present = inputs_of(3, 2, 6, 4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(attention(targets, tokens[:, order], present[:, order]), attention(targets, tokens, present))
