import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from infnet.layers.recurrent import AttentionalGRU, HistoryGRU, OldestFirst

shapes = {"R": st.integers(1, 5), "n": st.integers(1, 5), "d": st.integers(1, 4), "seed": st.integers(0, 99)}


def history_of(R, n, d, seed=0):
    """Tokens and presence, the first history empty."""
    torch.manual_seed(seed)
    tokens = torch.randn(R, n, d, dtype=torch.float64, requires_grad=True)
    present = torch.arange(n) < torch.randint(0, n + 1, (R, 1))
    present[0] = False
    return tokens, present


def compare_gradients(fast, slow, inputs):
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine, plain, rtol=1e-8, atol=1e-10)


@given(**shapes)
def test_events_come_back_to_where_they_were(R, n, d, seed):
    tokens, present = history_of(R, n, d, seed)
    steps = OldestFirst(present)
    assert torch.equal(steps.unpack(steps.pack(tokens))[present], tokens[present])


def test_steps_begin_with_the_oldest_event_of_the_longest_history():
    present = torch.arange(3) < torch.tensor([[1], [3], [0], [2]])
    steps = OldestFirst(present)
    named = torch.arange(12.0).view(4, 3, 1)  # 3 * request + column
    assert steps.counts.tolist() == [4, 2, 1]
    assert steps.pack(named).flatten().tolist() == [5, 10, 0, 6, 4, 9, 3]
    assert steps.in_given_order(torch.tensor([[1.0], [3.0], [0.0], [2.0]])).flatten().tolist() == [0, 1, 2, 3]


@settings(max_examples=30)
@given(**shapes)
def test_states_are_those_of_a_gru_on_each_history_by_itself(R, n, d, seed):
    tokens, present = history_of(R, n, d, seed)
    layer = HistoryGRU(d).double()
    fast = layer(tokens, OldestFirst(present))[present]
    alone = [
        layer.gru(history[here].flip(0))[0].flip(0) for history, here in zip(tokens, present, strict=True) if here.any()
    ]
    slow = torch.cat(alone) if alone else tokens[present]
    assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    compare_gradients(fast, slow, [tokens])


def evolve(layer, inputs, attention):
    """One candidate's last state, event by event: inputs (n, d) and attention (n,), most recent first."""
    d = layer.width
    state = inputs.new_zeros(d)
    for event, weight in zip(inputs.flip(0), attention.flip(0), strict=True):
        of_event, of_state = layer.input(event), layer.state.weight @ state
        update = weight * torch.sigmoid(of_event[:d] + of_state[:d])
        reset = torch.sigmoid(of_event[d : 2 * d] + of_state[d : 2 * d])
        proposal = torch.tanh(of_event[2 * d :] + reset * of_state[2 * d :])
        state = (1 - update) * state + update * proposal
    return state


@settings(max_examples=30)
@given(N=st.integers(1, 3), **shapes)
def test_evolution_equals_its_equations(R, N, n, d, seed):
    inputs, present = history_of(R, n, d, seed)
    layer = AttentionalGRU(d).double()
    attention = (torch.rand(R, N, n, dtype=torch.float64) * present[:, None]).requires_grad_()
    fast = layer(inputs, attention, OldestFirst(present))
    slow = torch.stack(
        [torch.stack([evolve(layer, x, a) for a in each]) for x, each in zip(inputs, attention, strict=True)]
    )
    assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    compare_gradients(fast, slow, [inputs, *layer.parameters()])


def test_full_attention_is_a_plain_gru():
    inputs, present = history_of(4, 5, 3)
    layer, gru = AttentionalGRU(3).double(), nn.GRU(3, 3, batch_first=True).double()
    with torch.no_grad():
        for name, linear in (("ih", layer.input), ("hh", layer.state)):
            update, reset, proposal = linear.weight.chunk(3)
            # PyTorch's update gate says how much of the state to keep.
            getattr(gru, f"weight_{name}_l0").copy_(torch.cat([reset, -update, proposal]))
        update, reset, proposal = layer.input.bias.chunk(3)
        gru.bias_ih_l0.copy_(torch.cat([reset, -update, proposal]))
        gru.bias_hh_l0.zero_()
    last = layer(inputs, present[:, None].double(), OldestFirst(present))[:, 0]
    for r in range(1, 4):
        assert_close(last[r], gru(inputs[r : r + 1, present[r]].flip(1))[1][0, 0])
    assert not last[0].any()


def test_an_event_without_attention_might_as_well_not_be_there():
    inputs, present = history_of(3, 5, 4)
    present[:] = True
    layer = AttentionalGRU(4).double()
    attention = torch.rand(3, 2, 5, dtype=torch.float64)
    attention[..., 2] = 0
    others = [0, 1, 3, 4]
    without = layer(inputs[:, others], attention[..., others], OldestFirst(present[:, others]))
    assert_close(layer(inputs, attention, OldestFirst(present)), without)
    assert not layer(inputs, torch.zeros_like(attention), OldestFirst(present)).any()


@pytest.mark.parametrize("padding", [0.0, 1e6])
def test_padding_is_invisible(padding):
    tokens, present = history_of(4, 5, 3)
    torch.manual_seed(1)
    extractor, evolution = HistoryGRU(3).double(), AttentionalGRU(3).double()
    steps, attention = OldestFirst(present), torch.rand(4, 2, 5, dtype=torch.float64) * present[:, None]
    other = torch.where(present[..., None], tokens, padding)
    assert_close(extractor(other, steps)[present], extractor(tokens, steps)[present])
    assert_close(evolution(other, attention, steps), evolution(tokens, attention, steps))
