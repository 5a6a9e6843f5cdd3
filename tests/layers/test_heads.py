import pytest
import torch
from torch.testing import assert_close

from infnet.layers.heads import TaskHeads

T, WIDTH, SHARED = 3, 4, 5


def separate_heads(heads, hidden, own, shared):
    """Each task's MLP by itself, over its own input and the shared one side by side."""
    logits = []
    for task in range(T):
        first = heads.own[0]
        out = own[..., task, :] @ first.weight[task] + first.bias[task]
        if shared is not None:
            size = (*hidden, 1)[0]
            out = out + shared @ heads.shared.weight[task * size : (task + 1) * size].T
        for layer in list(heads.own)[1:]:
            out = out.clamp(min=0) @ layer.weight[task] + layer.bias[task]
        logits.append(out[..., 0])
    return torch.stack(logits, dim=-1)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 2)])
@pytest.mark.parametrize("shared_width", [0, SHARED])
def test_each_task_has_an_mlp_of_its_own(hidden, shared_width):
    torch.manual_seed(0)
    heads = TaskHeads(T, WIDTH, hidden, shared_width).double()
    own = torch.randn(2, 7, T, WIDTH, dtype=torch.float64)
    shared = torch.randn(2, 7, SHARED, dtype=torch.float64) if shared_width else None
    found = heads(own, shared)
    assert found.shape == (2, 7, T)
    assert_close(found, separate_heads(heads, hidden, own, shared))


def test_a_tasks_own_input_moves_its_logit_alone():
    torch.manual_seed(0)
    heads, own = TaskHeads(T, WIDTH, (6,)), torch.randn(2, 7, T, WIDTH)
    other = own.clone()
    other[..., 1, :] += 1.0
    changed = (heads(other) != heads(own)).any(dim=(0, 1))
    assert changed.tolist() == [False, True, False]


def test_dropout_acts_in_training_only():
    heads, own = TaskHeads(T, WIDTH, (64,), dropout=0.5), torch.randn(2, 7, T, WIDTH)
    assert not torch.equal(heads(own), heads(own))
    heads.eval()
    assert torch.equal(heads(own), heads(own))
