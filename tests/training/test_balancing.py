"""Every way to balance the tasks, through a whole step of training."""

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from infnet.models import SharedBottom, build_model, model_names
from infnet.models.shared_bottom import SharedBottomConfig
from infnet.training.objectives import Objective
from infnet.training.optimizers import Optimizers
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState
from infnet.training.step import Stepper
from infnet.training.trainer import train
from random_batches import make_batch, make_layout

LAYOUT = make_layout(tasks=3, regression=True, gap=True)
WAYS = ["fixed", "uncertainty", "gradnorm", "pcgrad", "cagrad"]
SETTINGS = SharedBottomConfig(width=4, hidden=(16,), head_hidden=(8,), dropout=0.0, embedding_std=0.5)


class WithAuxiliaryLoss(SharedBottom):
    """Its own loss is the sum of the table's rows that the batch reads, and of a parameter that no task uses."""

    def __init__(self, layout, config):
        super().__init__(layout, config)
        self.own = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        self._auxiliary = self.embedding(batch.rows).sum() + self.own
        return super().forward(batch)

    def auxiliary_loss(self):
        return self._auxiliary


def small_shared_bottom():
    return SharedBottom(LAYOUT, SETTINGS)


def labelled(seed=0):
    batch = make_batch(LAYOUT, 12, 1, seed)
    batch.labels[:] = torch.randint(0, 2, batch.labels.shape, generator=torch.Generator().manual_seed(seed))
    return batch


@pytest.fixture
def gradients(small_config):
    """A function that takes one step and gives the gradients behind the update by parameter, dense."""

    def take(way, batch, build=small_shared_bottom, **changes):
        config = small_config(task_weighting=way, **changes)
        torch.manual_seed(0)
        model = build()
        objective = Objective(LAYOUT.tasks, config)
        learned = ((f"objective.{name}", parameter) for name, parameter in objective.named_parameters())
        state = TrainState(model, Optimizers(model, config, learned), objective, torch.device("cpu"))
        seen = {}

        def look(factor):
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                seen[name] = torch.zeros_like(parameter) if gradient is None else gradient.to_dense().clone()

        state.optimizers.step = look
        Stepper(state, config, Schedule("constant", 0, 0), Path("best")).step(batch)
        return seen

    return take


@pytest.mark.parametrize("way", WAYS)
def test_an_auxiliary_loss_is_added_in_full(gradients, way):
    batch = labelled()
    without, with_it = gradients(way, batch), gradients(way, batch, lambda: WithAuxiliaryLoss(LAYOUT, SETTINGS))
    assert with_it.pop("own").item() == 1.0
    rows = torch.zeros_like(without["embedding.weight"])
    rows[batch.rows] = 1.0
    for name, gradient in with_it.items():
        extra = rows if name == "embedding.weight" else 0.0
        assert_close(gradient, without[name] + extra, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_a_task_without_labels_pulls_at_nothing(gradients, way):
    batch = labelled()
    batch.labels[..., 1] = math.nan
    found = gradients(way, batch)
    assert all(gradient.isfinite().all() for gradient in found.values())
    heads = [gradient for name, gradient in found.items() if name.startswith("heads.")]
    assert any(gradient.any() for gradient in heads)
    assert all((gradient[1] == 0).all() for gradient in heads if gradient.shape[0] == len(LAYOUT.tasks))


@pytest.mark.parametrize("way", WAYS)
def test_no_labels_at_all_move_nothing(gradients, way):
    batch = labelled()
    batch.labels[:] = math.nan
    assert all((gradient == 0).all() for gradient in gradients(way, batch, clip_norm=1.0).values())


@pytest.mark.parametrize("way", WAYS)
def test_clipping_limits_what_is_followed_the_tables_rows_included(gradients, way):
    free, clipped = gradients(way, labelled()), gradients(way, labelled(), clip_norm=1e-2)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in free.values()))
    assert norm > 1e-2
    clipped_norm = math.sqrt(sum(gradient.square().sum().item() for gradient in clipped.values()))
    assert clipped_norm <= 1e-2 * (1 + 1e-4)
    for name, gradient in clipped.items():
        if way != "uncertainty":  # whose learned variances are clipped along
            assert_close(gradient, free[name] * (1e-2 / norm), rtol=1e-3, atol=1e-8, msg=name)


def test_one_task_has_nobody_to_balance(gradients):
    batch = labelled()
    batch.labels[..., 1:] = math.nan
    plain = gradients("fixed", batch)
    for name, gradient in gradients("pcgrad", batch).items():
        assert_close(gradient, plain[name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", model_names())
def test_gradients_of_any_model_taken_task_by_task_add_up_to_the_whole(gradients, name):
    def build():
        return build_model(name, LAYOUT, {"width": 8, "dropout": 0.0, "embedding_std": 0.5})

    plain = gradients("fixed", labelled(), build)
    for parameter, gradient in gradients("cagrad", labelled(), build, cagrad_c=0.0).items():
        assert_close(gradient, plain[parameter], rtol=1e-3, atol=1e-5, msg=parameter)
    for way in ("gradnorm", "pcgrad"):
        assert all(gradient.isfinite().all() for gradient in gradients(way, labelled(), build).values())


def test_cagrad_without_a_radius_trains_as_the_plain_sum_does(tmp_path, dataset, evaluate, small_config):
    changes = {"epochs": 1, "settings": small_config().settings | {"dropout": 0.0}}
    plain = train(dataset, small_config(**changes, task_weighting="fixed"), tmp_path / "plain", evaluate=evaluate)
    config = small_config(**changes, task_weighting="cagrad", cagrad_c=0.0)
    run = train(dataset, config, tmp_path / "cagrad", evaluate=evaluate)
    assert run.report["metrics"] == pytest.approx(plain.report["metrics"], abs=1e-3)
