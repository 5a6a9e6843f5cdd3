import pytest
import torch
from experts_oracle import experts_written_out, extraction_written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from written_out import assert_same_function

from infnet.layers.experts import Experts, ProgressiveExtraction
from infnet.layers.mlp import HiddenLayers

widths = st.sampled_from([(3,), (4, 3), (4, 3, 5)])
leading = st.sampled_from([(1,), (3,), (2, 3)])


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def one_by_one(fn, *tensors):
    """A function of one row's vectors, applied to every row."""
    rows = zip(*(tensor.flatten(0, -2) for tensor in tensors), strict=True)
    out = torch.stack([fn(*row) for row in rows])
    return out.unflatten(0, tensors[0].shape[:-1])


@settings(max_examples=25)
@given(shape=leading, num_experts=st.integers(1, 4), widths=widths, seed=st.integers(0, 99))
def test_experts_equal_as_many_separate_networks(shape, num_experts, widths, seed):
    torch.manual_seed(seed)
    experts, first = Experts(num_experts, widths).double(), drawn(*shape, num_experts * widths[0])
    slow = one_by_one(lambda x: torch.stack(experts_written_out(experts, x)), first)
    assert_same_function(experts(first), slow, [first, *experts.parameters()])


def test_one_expert_is_the_hidden_layers_of_a_single_network():
    torch.manual_seed(0)
    experts, single, first = Experts(1, (6, 5, 4)), HiddenLayers((6, 5, 4)), torch.randn(3, 2, 6)
    linears = [layer for layer in single if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for mine, linear in zip(experts.layers, linears, strict=True):
            mine.weight[0], mine.bias[0] = linear.weight.T, linear.bias
    assert_close(experts(first).squeeze(-2), single(first))


extractions = st.fixed_dictionaries(
    {
        "num_tasks": st.integers(1, 4),
        "num_levels": st.integers(1, 3),
        "num_shared": st.integers(1, 3),
        "num_specific": st.integers(0, 3),
        "widths": widths,
    }
)


@settings(max_examples=40)
@given(sizes=extractions, shape=leading, seed=st.integers(0, 99))
def test_extraction_equals_its_gates_and_experts_written_out(sizes, shape, seed):
    torch.manual_seed(seed)
    extraction = ProgressiveExtraction(**sizes).double()
    inputs = [drawn(*shape, extraction.first_width), drawn(*shape, extraction.num_logits)]
    slow = one_by_one(lambda first, logits: extraction_written_out(extraction, first, logits), *inputs)
    parameters = [p for p in extraction.parameters() if p.numel()]
    assert_same_function(extraction(*inputs), slow, [*inputs, *parameters])


@pytest.mark.parametrize(("num_levels", "meets_others"), [(1, False), (2, True)])
def test_a_task_meets_the_other_tasks_experts_on_later_levels_only(num_levels, meets_others):
    torch.manual_seed(0)
    T, S, width = 3, 2, 4
    extraction = ProgressiveExtraction(T, num_levels, num_shared=1, num_specific=S, widths=(width,))
    first, logits = torch.rand(5, extraction.first_width, requires_grad=True), torch.randn(5, extraction.num_logits)
    for task in range(T):
        (gradient,) = torch.autograd.grad(extraction(first, logits)[:, task].sum(), first)
        reached = (gradient != 0).any(dim=0).view(-1, width).any(dim=1)
        is_own = torch.arange(T * S + 1) // S == task
        is_shared = torch.arange(T * S + 1) == T * S
        assert torch.equal(reached, is_own | is_shared | meets_others)


def test_nothing_is_made_that_nobody_reads():
    extraction = ProgressiveExtraction(2, num_levels=3, num_shared=2, num_specific=1, widths=(4, 3))
    inputs = drawn(5, extraction.first_width), drawn(5, extraction.num_logits)
    extraction.double()(*inputs).square().sum().backward()
    assert [name for name, p in extraction.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(value.grad.any(dim=0).any() for value in inputs)


def test_dropout_acts_in_training_only():
    extraction = ProgressiveExtraction(2, num_levels=2, num_shared=2, num_specific=1, widths=(32, 16), dropout=0.5)
    inputs = torch.randn(5, extraction.first_width), torch.randn(5, extraction.num_logits)
    assert not torch.equal(extraction(*inputs), extraction(*inputs))
    extraction.eval()
    assert torch.equal(extraction(*inputs), extraction(*inputs))
