import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from infnet.layers.mlp import MLP, GroupedLinear, SplitLinear

leading = st.sampled_from([(), (1,), (4,), (2, 3), (0,), (2, 3, 2)])


@given(leading=leading, groups=st.integers(1, 4), seed=st.integers(0, 9))
def test_grouped_layers_equal_as_many_separate_ones(leading, groups, seed):
    torch.manual_seed(seed)
    grouped = GroupedLinear(groups, 3, 5).double()
    inputs = torch.randn(*leading, groups, 3, dtype=torch.float64, requires_grad=True)
    separate = []
    for g in range(groups):
        linear = nn.Linear(3, 5).double()
        linear.load_state_dict({"weight": grouped.weight[g].T, "bias": grouped.bias[g]})
        separate.append(linear(inputs[..., g, :]))
    found, wanted = grouped(inputs), torch.stack(separate, dim=-2)
    assert_close(found, wanted)
    if inputs.numel():
        assert_close(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs))


def test_grouped_layers_begin_as_separate_ones_do():
    torch.manual_seed(0)
    grouped, linear = GroupedLinear(8, 100, 60), nn.Linear(100, 60)
    for mine, theirs in ((grouped.weight, linear.weight), (grouped.bias, linear.bias)):
        assert mine.abs().max() <= 0.1 + 1e-6
        assert_close(mine.std(), theirs.std(), rtol=0.15, atol=0)


@given(widths=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_a_split_layer_equals_one_over_the_concatenation(widths, seed):
    torch.manual_seed(seed)
    split = SplitLinear(widths, 5).double()
    parts = [torch.randn(3, width, dtype=torch.float64) for width in widths]
    whole = torch.cat(list(split.weights), dim=1)
    wanted = torch.cat(parts, dim=1) @ whole.T + split.bias
    assert_close(sum(split.part(i, part) for i, part in enumerate(parts)) + split.bias, wanted)


def test_a_split_layer_begins_as_one_over_the_concatenation_does():
    torch.manual_seed(0)
    split, linear = SplitLinear([60, 40], 80), nn.Linear(100, 80)
    for weight in split.weights:
        assert_close(weight.std(), linear.weight.std(), rtol=0.1, atol=0)


def test_an_mlp_is_linear_layers_with_relu_between():
    torch.manual_seed(0)
    mlp = MLP(3, (6, 4), 2, dropout=0.5).eval()
    inputs = torch.randn(7, 3)
    linears = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    assert [tuple(linear.weight.shape) for linear in linears] == [(6, 3), (4, 6), (2, 4)]
    hidden = linears[1](linears[0](inputs).clamp(min=0)).clamp(min=0)
    assert_close(mlp(inputs), linears[2](hidden))
    assert not torch.equal(mlp.train()(inputs), mlp(inputs))  # dropout
    assert torch.equal(MLP(3, (), 2)(torch.zeros(1, 3)).isfinite(), torch.ones(1, 2, dtype=torch.bool))
