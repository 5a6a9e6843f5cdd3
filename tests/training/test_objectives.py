import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from infnet.data.layout import TaskLayout
from infnet.training.objectives import FixedWeights, GradNormWeights, UncertaintyWeights, task_losses

NAN = math.nan


def task(loss="bce", weight=1.0, mean=0.0, std=1.0, name="t"):
    kind = "binary" if loss == "bce" else "regression"
    return TaskLayout(name=name, kind=kind, loss=loss, weight=weight, mean=mean, std=std)


def one_task(logits, labels, spec, present=None):
    logits, labels = torch.tensor(logits)[:, None, None], torch.tensor(labels)[:, None, None]
    present = torch.ones(len(logits), 1, dtype=torch.bool) if present is None else present
    losses, observed = task_losses(logits, labels, present, (spec,))
    return losses.item(), observed.item()


def test_bce_is_the_mean_negative_log_likelihood():
    probs = [1 / (1 + math.exp(-z)) for z in (0.5, -1.0, 2.0)]
    wanted = -(math.log(probs[0]) + math.log(1 - probs[1]) + math.log(probs[2])) / 3
    assert one_task([0.5, -1.0, 2.0], [1.0, 0.0, 1.0], task())[0] == pytest.approx(wanted)


def test_mse_is_of_the_standardised_label():
    assert one_task([1.0, 0.0], [7.0, 1.0], task("mse", mean=3.0, std=2.0))[0] == pytest.approx((1.0 + 1.0) / 2)


def test_huber_grows_linearly_beyond_one_standard_deviation():
    assert one_task([0.0], [4.0], task("huber", mean=3.0, std=2.0))[0] == pytest.approx(0.5 * 0.25)
    assert one_task([0.0], [13.0], task("huber", mean=3.0, std=2.0))[0] == pytest.approx(5.0 - 0.5)


def test_log_mse_is_of_log_one_plus_label():
    assert one_task([1.0], [math.e - 1], task("log_mse"))[0] == pytest.approx(0.0, abs=1e-6)
    assert one_task([0.0], [math.exp(3) - 1], task("log_mse"))[0] == pytest.approx(9.0, rel=1e-5)


def test_a_constant_label_does_not_divide_by_zero():
    assert one_task([0.0], [3.0], task("mse", mean=3.0, std=0.0))[0] == 0.0


def test_missing_labels_and_padding_change_neither_loss_nor_gradient():
    tasks = (task(name="a"), task("mse", name="b"))
    R, N = 3, 2
    torch.manual_seed(0)
    logits = torch.randn(R, N, 2)
    labels = torch.tensor([[[1.0, 0.5], [0.0, NAN]], [[NAN, 2.0], [1.0, 1.0]], [[0.0, NAN], [NAN, NAN]]])
    present = torch.tensor([[True, True], [True, False], [True, True]])
    logits[1, 1] = math.inf  # padding may hold anything
    logits[2, 1] = math.nan
    logits.requires_grad_()
    losses, observed = task_losses(logits, labels, present, tasks)
    a = F.binary_cross_entropy_with_logits(logits[[0, 0, 2], [0, 1, 0], 0], torch.tensor([1.0, 0.0, 0.0]))
    b = F.mse_loss(logits[[0, 1], [0, 0], 1], torch.tensor([0.5, 2.0]))
    assert_close(losses, torch.stack([a, b]))
    assert observed.all()
    losses.sum().backward()
    unseen = labels.isnan() | ~present[..., None]
    assert (logits.grad[unseen] == 0).all()
    assert (logits.grad[~unseen] != 0).all()


def test_a_task_without_any_label_costs_nothing():
    assert one_task([5.0], [NAN], task()) == (0.0, False)


def test_fixed_weights_are_the_lambdas():
    weights = FixedWeights((task(weight=0.5), task(weight=2.0)))
    assert weights(torch.tensor([4.0, 3.0]), torch.tensor([True, True]), []).item() == 8.0


def test_uncertainty_settles_at_the_noise_of_each_task():
    tasks = (task("bce"), task("mse"))
    weighting = UncertaintyWeights(tasks)
    losses, observed = torch.tensor([0.3, 5.0]), torch.tensor([True, True])
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        weighting(losses, observed, []).backward()
        optimizer.step()
    assert_close(weighting.log_variance.detach(), torch.tensor([math.log(0.6), math.log(5.0)]), atol=1e-3, rtol=0)
    assert_close(weighting.current(), torch.tensor([1 / 0.6, 0.5 / 5.0]), atol=1e-2, rtol=0)


def test_uncertainty_leaves_a_task_without_labels_alone():
    weighting = UncertaintyWeights((task(), task()))
    weighting(torch.tensor([0.7, 0.0]), torch.tensor([True, False]), []).backward()
    assert weighting.log_variance.grad[0] != 0
    assert weighting.log_variance.grad[1] == 0


def test_gradnorm_without_alpha_makes_all_gradients_equally_long():
    shared = nn.Parameter(torch.zeros(2))
    slopes = torch.tensor([[1.0, 0.0], [0.0, 4.0]])  # gradient norms 1 and 4
    weighting = GradNormWeights((task(), task()), alpha=0.0, rate=0.01)
    for _ in range(500):
        losses = slopes @ shared + 1.0
        weighting(losses, torch.tensor([True, True]), [shared])
    assert_close(weighting.weights, torch.tensor([1.6, 0.4]), atol=0.03, rtol=0)  # w_i ~ 1 / norm_i, sum 2


def test_gradnorm_lets_tasks_of_any_scale_pull_alike():
    shared = nn.Parameter(torch.zeros(2))
    weighting = GradNormWeights((task(), task()), alpha=0.0, rate=0.01, every=4)
    for _ in range(1000):  # scale / 2 |x - target|^2 at a distance of 1: pulls of 1 and 100
        losses = torch.stack(
            [0.5 * (shared - torch.eye(2)[0]).square().sum(), 50 * (shared - torch.eye(2)[1]).square().sum()]
        )
        weighting(losses, torch.tensor([True, True]), [shared])
    assert_close(weighting.weights, torch.tensor([200 / 101, 2 / 101]), rtol=0.1, atol=0)


def test_gradnorm_looks_at_gradients_now_and_then_and_moves_as_far():
    def ratio(every, steps):
        shared = nn.Parameter(torch.zeros(2))
        weighting = GradNormWeights((task(), task()), alpha=0.0, rate=0.01, every=every)
        for _ in range(steps):
            losses = torch.tensor([[1.0, 0.0], [0.0, 4.0]]) @ shared + 1.0
            weighting(losses, torch.tensor([True, True]), [shared])
        return math.log(weighting.weights[0] / weighting.weights[1])

    assert ratio(4, 1) == pytest.approx(4 * ratio(1, 1), rel=1e-4)
    assert ratio(4, 1) == ratio(4, 4) < ratio(4, 5)
    assert ratio(4, 40) == pytest.approx(ratio(1, 40), rel=0.1)


def test_gradnorm_with_alpha_pulls_the_slower_task():
    shared = nn.Parameter(torch.zeros(1))
    weighting = GradNormWeights((task(), task()), alpha=1.0, rate=0.01)
    observed = torch.tensor([True, True])
    weighting(shared + torch.tensor([1.0, 1.0]), observed, [shared])
    for _ in range(500):  # the first has not moved, the second is down to a third: r = 1.5 and 0.5
        weighting(shared + torch.tensor([0.9, 0.3]), observed, [shared])
    assert_close(weighting.weights, torch.tensor([1.5, 0.5]), atol=0.03, rtol=0)


def test_gradnorm_ignores_the_unit_of_the_losses():
    def settle(unit):
        shared = nn.Parameter(torch.zeros(2))
        weighting = GradNormWeights((task(), task()), alpha=0.5, rate=0.01)
        for _ in range(50):
            losses = unit * (torch.tensor([[1.0, 0.0], [0.0, 4.0]]) @ shared + 1.0)
            weighting(losses, torch.tensor([True, True]), [shared])
        return weighting.weights

    assert_close(settle(1.0), settle(1000.0))


def test_gradnorm_hands_back_a_loss_to_differentiate_under_the_weights_before_its_own_step():
    shared = nn.Parameter(torch.ones(1))
    weighting = GradNormWeights((task(weight=3.0), task(weight=1.0)), alpha=1.5, rate=0.1)
    total = weighting(torch.stack([2 * shared[0], 5 * shared[0]]), torch.tensor([True, True]), [shared])
    total.backward()
    assert shared.grad.item() == 3 * 2 + 1 * 5
    assert weighting.weights.tolist() != [3.0, 1.0]
    assert weighting.weights.sum().item() == pytest.approx(4.0)
