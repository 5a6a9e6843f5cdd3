import math

import numpy as np
import pytest

from infnet.evaluation.predictions import Predictions
from infnet.evaluation.report import evaluate_predictions
from infnet.training.monitor import goodness, metric_names
from random_batches import make_layout


@pytest.mark.parametrize(("tasks", "regression"), [(3, True), (2, False), (1, True)])
def test_what_can_be_watched_is_exactly_what_the_report_holds(tasks, regression):
    layout = make_layout(tasks=tasks, regression=regression)
    rng = np.random.default_rng(0)
    predictions = Predictions(
        tuple(task.name for task in layout.tasks),
        tuple(task.kind for task in layout.tasks),
        rng.integers(0, 2, (40, tasks)).astype(np.float32),
        rng.random((40, tasks)),
        rng.integers(0, 5, 40),
    )
    assert metric_names(layout) == set(evaluate_predictions(predictions).as_flat())


@pytest.mark.parametrize(
    ("name", "worst_to_best"),
    [
        ("mean", (0.4, 0.5, 0.9)),
        ("t0_gauc", (0.4, 0.5, 0.9)),
        ("t0_recall@10", (0.0, 0.3)),
        ("watch_r2", (-1.0, 0.0, 0.2)),
        ("t0_logloss", (1.2, 0.5, 0.1)),
        ("t0_ece", (0.1, 0.0)),
        ("watch_rmse", (20.0, 10.0)),
        ("watch_mae", (20.0, 10.0)),
        ("t0_pcoc", (0.0, 0.4, 2.0, 0.9, 1.0)),
    ],
)
def test_a_better_value_is_good_by_a_larger_number(name, worst_to_best):
    found = [goodness(name, value) for value in worst_to_best]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_predicting_half_is_as_wrong_as_predicting_twice():
    assert goodness("t0_pcoc", 0.5) == pytest.approx(goodness("t0_pcoc", 2.0))
    assert goodness("t0_pcoc", math.inf) == -math.inf
