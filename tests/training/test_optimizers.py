import pytest
import torch
from torch import nn
from torch.testing import assert_close

from infnet.models import build_model
from infnet.training.optimizers import Optimizers
from random_batches import make_batch, make_layout


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("shared_bottom", make_layout(), {"width": 4, "hidden": [8], "head_hidden": [4]})


def backward(model, layout_seed=0, scale=1.0):
    batch = make_batch(make_layout(), 5, 2, seed=layout_seed)
    (scale * model(batch).square().sum()).backward()
    return batch


def joint_norm(model):
    table = model.embedding.weight
    dense = [p.grad.flatten() for p in model.parameters() if p is not table and p.grad is not None]
    return torch.cat([*dense, table.grad.coalesce().values().flatten()]).norm()


def test_the_norm_is_that_of_dense_parameters_and_touched_rows_together(model, small_config):
    optimizers = Optimizers(model, small_config(clip_norm=None))
    backward(model)
    wanted = joint_norm(model)
    assert_close(optimizers.clip(), wanted)
    assert_close(joint_norm(model), wanted)  # without clip_norm nothing is cut


def test_a_norm_over_the_limit_is_cut_to_it_and_a_smaller_one_is_not(model, small_config):
    optimizers = Optimizers(model, small_config(clip_norm=0.5))
    backward(model, scale=1e4)
    assert optimizers.clip() > 0.5
    assert joint_norm(model).item() == pytest.approx(0.5, rel=1e-4)
    optimizers.zero_grad()
    backward(model, scale=1e-4)
    small = joint_norm(model).clone()
    optimizers.clip()
    assert_close(joint_norm(model), small)


def test_zero_grad_forgets_everything(model, small_config):
    optimizers = Optimizers(model, small_config())
    backward(model)
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_factor_and_embedding_learning_rate_scale_the_first_step_of_adam(model, small_config):
    config = small_config(learning_rate=0.01, embedding_learning_rate=0.1, eps=1e-30)
    optimizers = Optimizers(model, config)
    batch = backward(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers.step(0.5)
    moved = {name: (p.detach() - before[name]).abs() for name, p in model.named_parameters()}
    table = moved.pop("embedding.weight")
    # Adam's first step is the learning rate's length wherever the gradient is not 0.
    assert table[batch.rows].max().item() == pytest.approx(0.05, rel=1e-3)
    assert max(m.max().item() for m in moved.values() if m.numel()) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad"])
def test_weight_decay_shrinks_dense_parameters_only_and_not_task_weights(model, small_config, optimizer):
    other = nn.Parameter(torch.ones(3))
    optimizers = Optimizers(model, small_config(optimizer=optimizer, weight_decay=0.1), [("other", other)])
    for parameter in model.parameters():
        if parameter is not model.embedding.weight:
            parameter.grad = torch.zeros_like(parameter)
    other.grad = torch.zeros(3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers.step()
    assert torch.equal(other, torch.ones(3))
    for name, parameter in model.named_parameters():
        if name == "embedding.weight":
            assert torch.equal(parameter, before[name])
        else:
            assert parameter.norm() < before[name].norm() or before[name].norm() == 0


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad"])
def test_restored_optimizers_go_on_bit_by_bit(small_config, optimizer):
    layout, config = make_layout(), small_config(optimizer=optimizer)
    settings = {"width": 4, "hidden": [8], "head_hidden": [4], "dropout": 0.0}

    def step(model, optimizers, seed):
        optimizers.zero_grad()
        model(make_batch(layout, 5, 2, seed=seed)).square().sum().backward()
        optimizers.clip()
        optimizers.step()

    torch.manual_seed(0)
    first = build_model("shared_bottom", layout, settings)
    begun = Optimizers(first, config)
    for seed in range(3):
        step(first, begun, seed)
    saved = {name: t.clone() for name, t in begun.state_dict().items()}
    second = build_model("shared_bottom", layout, settings)
    second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
    resumed = Optimizers(second, config)
    resumed.load_state_dict(saved)
    for seed in range(3, 6):
        step(first, begun, seed)
        step(second, resumed, seed)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
