"""Gradient surgery on inner products against the papers' algorithms on vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.training.surgery import CAGrad, PCGrad


def followed(method, gradients):
    """The update for gradients (T, n)."""
    gradients = np.array(gradients, dtype=float)
    return method.coefficients(gradients @ gradients.T) @ gradients


@st.composite
def gradient_sets(draw):
    """Two to five gradients of several lengths, some opposite, equal or zero."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_tasks, size = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    gradients = random.normal(size=(num_tasks, size)) * 10.0 ** random.uniform(-1, 1, size=(num_tasks, 1))
    change = draw(st.sampled_from(["none", "opposite", "equal", "zero"]))
    if change != "none":
        gradients[0] = {"opposite": -0.5, "equal": 1.0, "zero": 0.0}[change] * gradients[1]
    return gradients


def test_pcgrad_takes_from_each_of_two_what_points_against_the_other():
    # (1, 0) loses its part along (-1, 1): (1/2, 1/2) is left; (-1, 1) loses its part along (1, 0): (0, 1) is left.
    assert followed(PCGrad(), [[1, 0], [-1, 1]]) == pytest.approx([0.5, 1.5])


def test_pcgrad_is_the_plain_sum_without_a_conflict():
    assert followed(PCGrad(), [[1, 0], [1, 1], [0, 3]]) == pytest.approx([2, 4])


@given(gradients=gradient_sets(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_pcgrad_is_the_papers_algorithm_on_vectors(gradients, seed):
    torch.manual_seed(seed)
    wanted = np.zeros(gradients.shape[1])
    for i, gradient in enumerate(gradients):
        left = gradient.copy()
        for j in torch.randperm(len(gradients)).tolist():
            if j != i and left @ gradients[j] < -1e-12:
                left -= (left @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        wanted += left
    torch.manual_seed(seed)
    assert followed(PCGrad(), gradients) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_pcgrad_draws_its_order_from_the_global_random_numbers():
    gradients = [[1, 0.2, 0], [-1, 1, 0.3], [0.2, -1, 1]]

    def update(seed):
        torch.manual_seed(seed)
        return tuple(followed(PCGrad(), gradients))

    assert update(1) == update(1)
    assert len({update(seed) for seed in range(20)}) > 1


def dual_value(weights, gradients, c):
    """What CAGrad's weights minimise; of each row of ``weights``."""
    mean = gradients.mean(axis=0)
    mixed = weights @ gradients
    return mixed @ mean + c * np.linalg.norm(mean) * np.linalg.norm(mixed, axis=-1)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("gradients", [[[1, 0], [-1, 1]], [[4, 1, 0], [-1, 0, 1], [0.1, 0.5, -0.3]]])
def test_cagrads_weights_are_the_best_of_a_fine_grid(gradients, c):
    gradients = np.array(gradients, dtype=float)
    steps = 400
    shares = np.stack(np.meshgrid(*[np.arange(steps + 1)] * (len(gradients) - 1)), -1).reshape(-1, len(gradients) - 1)
    shares = shares[shares.sum(axis=1) <= steps]
    grid = np.concatenate([shares, steps - shares.sum(axis=1, keepdims=True)], axis=1) / steps
    values = dual_value(grid, gradients, c)
    gram = gradients @ gradients.T
    weights, norm = CAGrad(c).solve(gram / gram.mean())
    square = gram.mean()
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0
    assert dual_value(weights, gradients, c) <= values.min() + 1e-4 * square
    assert weights == pytest.approx(grid[values.argmin()], abs=0.02)
    assert norm * math.sqrt(square) == pytest.approx(np.linalg.norm(weights @ gradients), rel=1e-3)


@given(gradients=gradient_sets(), c=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=100, deadline=None)
def test_cagrad_stays_near_the_mean_and_no_update_there_helps_the_worst_task_more(gradients, c):
    mean = gradients.mean(axis=0)
    square = mean @ mean
    if square < 1e-6 * (gradients**2).sum():
        return
    update = followed(CAGrad(c), gradients) / len(gradients)
    assert np.linalg.norm(update - mean) <= c * math.sqrt(square) * (1 + 1e-6)
    gram = gradients @ gradients.T
    weights, _ = CAGrad(c).solve(gram / square)
    # The dual's value bounds what any update can do for the worst-off task; this one does as much.
    assert (gradients @ update).min() == pytest.approx(dual_value(weights, gradients, c), abs=1e-4 * square)


def test_cagrad_without_a_radius_is_the_plain_sum():
    assert followed(CAGrad(0.0), [[1, 0], [-3, 1], [5, 5]]) == pytest.approx([3, 6])


def test_where_the_tasks_cancel_out_cagrad_stays():
    assert followed(CAGrad(0.5), [[1, -2], [-1, 2]]) == pytest.approx([0, 0])
    assert followed(CAGrad(0.5), [[0, 0], [0, 0]]) == pytest.approx([0, 0])


@pytest.mark.parametrize("method", [PCGrad(), CAGrad(0.5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stays_visible(method, bad):
    gram = np.array([[bad, bad], [bad, 1.0]])
    with np.errstate(all="ignore"):
        coefficients = method.coefficients(gram)
    assert (coefficients != 0).all()  # times a gradient that is no number: no number
