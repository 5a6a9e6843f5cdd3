"""Gradients task by task, through a real model."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from infnet.models import build_model
from infnet.training.gradients import TaskGradients
from infnet.training.objectives import task_losses
from random_batches import make_batch, make_layout

SETTINGS = {
    "infnet": {"width": 4, "embedding_width": 3, "dropout": 0.0, "embedding_std": 0.5},
    "shared_bottom": {"width": 4, "hidden": [8], "head_hidden": [5], "dropout": 0.0, "embedding_std": 0.5},
}


@pytest.fixture(params=SETTINGS)
def world(request):
    """A model, and a function that gives the losses (T,) of its batch anew."""
    torch.manual_seed(0)
    layout = make_layout(tasks=3, regression=True)
    model = build_model(request.param, layout, SETTINGS[request.param])
    batch = make_batch(layout, 6, 2)
    labels = torch.rand(6, 2, 3).round()
    return model, lambda: task_losses(model(batch), labels, batch.present, layout.tasks)[0]


def dense(model, loss):
    """Gradients of one loss by parameter name, the table's written out."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    named = zip(model.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g.to_dense() for (name, p), g in named}


def is_head(name):
    return name.startswith("heads.")


def test_inner_products_are_those_of_all_parameters_that_tasks_share(world):
    model, losses = world
    alone = [dense(model, losses()[i]) for i in range(3)]
    shared = [name for name in alone[0] if not is_head(name)]
    flat = torch.stack([torch.cat([gradients[name].flatten() for name in shared]) for gradients in alone]).double()
    assert_close(torch.from_numpy(TaskGradients(losses().unbind(), model).gram()), flat @ flat.mT, rtol=1e-5, atol=1e-9)


def test_shared_parameters_follow_the_coefficients_and_towers_their_own_task(world):
    model, losses = world
    alone = [dense(model, losses()[i]) for i in range(3)]
    coefficients = [0.5, 2.0, -1.0]
    TaskGradients(losses().unbind(), model).assign(np.array(coefficients))
    for name, parameter in model.named_parameters():
        factors = [1.0] * 3 if is_head(name) else coefficients
        wanted = sum(factor * gradients[name] for factor, gradients in zip(factors, alone, strict=True))
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        assert_close(found, wanted, rtol=1e-4, atol=1e-7, msg=name)


def test_the_tables_gradient_stays_sparse_with_each_row_once(world):
    model, losses = world
    TaskGradients(losses().unbind(), model).assign(np.ones(3))
    gradient = model.embedding.weight.grad
    assert gradient.is_sparse
    rows = gradient._indices()[0].tolist()
    assert len(rows) == len(set(rows)) < model.embedding.weight.shape[0]


def test_an_auxiliary_loss_is_followed_in_full_and_counts_in_no_conflict(world):
    model, losses = world

    def auxiliary():  # pulls at everything, towers included
        return sum(p.square().sum() for p in model.parameters() if p is not model.embedding.weight)

    without = TaskGradients(losses().unbind(), model)
    gradients = TaskGradients(losses().unbind(), model, auxiliary())
    assert gradients.gram() == pytest.approx(without.gram())
    coefficients = np.array([0.5, 2.0, -1.0])
    without.assign(coefficients)
    before = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    gradients.assign(coefficients)
    for name, parameter in model.named_parameters():
        extra = 0.0 if parameter is model.embedding.weight else 2.0 * parameter.detach()
        assert_close(parameter.grad.to_dense(), before[name].to_dense() + extra, rtol=1e-4, atol=1e-6, msg=name)
