import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from infnet.layers.cross import CrossNetwork, GatedCrossNetwork, MixtureCrossNetwork

WIDTH = 5
leading = st.sampled_from([(), (4,), (2, 3), (0,)])
depths = st.integers(1, 4)


def started(make, seed):
    """A network in double whose biases, zero at first, are not."""
    torch.manual_seed(seed)
    network = make().double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return network


def assert_equals_row_by_row(network, written_out, leading):
    """Compare values and gradients, the formula taking one row at a time."""
    inputs = torch.randn(*leading, WIDTH, dtype=torch.float64, requires_grad=True)
    found = network(inputs)
    assert found.shape == inputs.shape
    rows = [written_out(row) for row in inputs.reshape(-1, WIDTH)]
    if rows:
        wanted = torch.stack(rows).view_as(found)
        assert_close(found, wanted)
        sources = [inputs, *network.parameters()]
        weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
        gradients = [torch.autograd.grad((out * weights).sum(), sources) for out in (found, wanted)]
        assert_close(*gradients)


def test_two_full_layers_are_the_polynomial_of_degree_three():
    network = started(lambda: CrossNetwork(2, 2), seed=0)
    first, second = (layer.weight for layer in network.layers)
    with torch.no_grad():
        for layer in network.layers:
            layer.bias.zero_()
    x = torch.tensor([0.7, -1.3], dtype=torch.float64)
    for i, found in enumerate(network(x)):
        wanted = x[i]
        for j in range(2):
            wanted = wanted + (first[i, j] + second[i, j]) * x[i] * x[j]
            for k in range(2):
                wanted = wanted + second[i, j] * first[j, k] * x[i] * x[j] * x[k]
        assert_close(found, wanted)


@given(leading=leading, depth=depths, seed=st.integers(0, 9))
def test_full_layers_equal_their_equation(leading, depth, seed):
    network = started(lambda: CrossNetwork(WIDTH, depth), seed)

    def written_out(x0):
        x = x0
        for layer in network.layers:
            x = x0 * (layer.weight @ x + layer.bias) + x
        return x

    assert_equals_row_by_row(network, written_out, leading)


@given(leading=leading, depth=depths, rank=st.integers(1, 7), experts=st.integers(1, 4), seed=st.integers(0, 9))
def test_mixed_layers_equal_their_equations_expert_by_expert(leading, depth, rank, experts, seed):
    network = started(lambda: MixtureCrossNetwork(WIDTH, depth, rank, experts), seed)

    def written_out(x0):
        x = x0
        for layer in network.layers:
            gates = (layer.down.weight[experts * rank :] @ x).exp()
            total = torch.zeros_like(x)
            for k in range(experts):
                own = slice(k * rank, (k + 1) * rank)
                low = torch.tanh(layer.core[k].T @ torch.tanh(layer.down.weight[own] @ x))
                total = total + gates[k] / gates.sum() * x0 * (layer.up.weight[:, own] @ low + layer.up.bias)
            x = total + x
        return x

    assert_equals_row_by_row(network, written_out, leading)


def test_one_expert_of_full_rank_where_tanh_is_straight_is_a_full_layer():
    full, mixture = (started(make, seed=0) for make in (lambda: CrossNetwork(WIDTH, 2), one_expert))
    small = 1e-4
    with torch.no_grad():
        for layer, wanted in zip(mixture.layers, full.layers, strict=True):
            layer.down.weight[:WIDTH] = small * torch.eye(WIDTH)
            layer.core[0] = torch.eye(WIDTH)
            layer.up.weight.copy_(wanted.weight / small)
            layer.up.bias.copy_(wanted.bias)
    inputs = torch.randn(6, WIDTH, dtype=torch.float64)
    assert_close(mixture(inputs), full(inputs), rtol=1e-6, atol=1e-6)


def one_expert():
    return MixtureCrossNetwork(WIDTH, 2, rank=WIDTH, num_experts=1)


@given(leading=leading, depth=depths, seed=st.integers(0, 9))
def test_gated_layers_equal_their_equation(leading, depth, seed):
    network = started(lambda: GatedCrossNetwork(WIDTH, depth), seed)

    def written_out(c0):
        c = c0
        for layer, bias in zip(network.layers, network.biases, strict=True):
            cross, gate = layer.weight[:WIDTH], layer.weight[WIDTH:]
            c = c0 * (cross @ c + bias) / (1 + (-(gate @ c)).exp()) + c
        return c

    assert_equals_row_by_row(network, written_out, leading)


@pytest.mark.parametrize("depth", [1, 3])
def test_gated_layers_with_open_gates_are_full_layers(depth):
    gated = started(lambda: GatedCrossNetwork(WIDTH, depth), seed=0)
    full = CrossNetwork(WIDTH, depth).double()
    with torch.no_grad():
        for layer, bias, wanted in zip(gated.layers, gated.biases, full.layers, strict=True):
            layer.weight[0], bias[0] = 0, 0  # channel 0 stays what it was: one, which opens every gate
            layer.weight[WIDTH:] = 0
            layer.weight[WIDTH:, 0] = 1000
            wanted.weight.copy_(layer.weight[:WIDTH])
            wanted.bias.copy_(bias)
    inputs = torch.randn(6, WIDTH, dtype=torch.float64)
    inputs[:, 0] = 1
    assert_close(gated(inputs), full(inputs))
