import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from infnet.errors import DataError
from infnet.evaluation.regression import mae, r2, rmse

NUMBERS = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40)


@given(rows=ROWS)
def test_all_three_agree_with_scikit_learn(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    assert mae(labels, scores) == pytest.approx(sklearn_metrics.mean_absolute_error(labels, scores))
    assert rmse(labels, scores) == pytest.approx(sklearn_metrics.root_mean_squared_error(labels, scores))
    assume(labels.min() < labels.max())
    assert r2(labels, scores) == pytest.approx(sklearn_metrics.r2_score(labels, scores), rel=1e-9, abs=1e-9)


def test_predicting_the_mean_explains_nothing_and_the_truth_everything():
    labels = np.array([1.0, 2.0, 6.0])
    assert r2(labels, np.full(3, 3.0)) == pytest.approx(0.0)
    assert r2(labels, labels) == 1.0
    assert r2(labels, labels[::-1]) < 0


def test_labels_that_do_not_vary_leave_r2_undefined():
    assert math.isnan(r2([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]))
    assert math.isnan(r2([2.0], [2.0]))


def test_single_precision_columns_are_summed_in_double():
    labels = np.full(300_000, 0.1, dtype=np.float32)
    assert mae(labels, np.zeros_like(labels)) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_no_rows_are_undefined():
    for metric in (r2, mae, rmse):
        assert math.isnan(metric([], []))


@pytest.mark.parametrize("metric", [r2, mae, rmse])
def test_values_that_are_no_finite_numbers_are_refused_by_row(metric):
    with pytest.raises(DataError, match="labels row 1 is nan"):
        metric([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(DataError, match="scores row 0 is inf"):
        metric([1.0, 2.0], [math.inf, 2.0])
    with pytest.raises(DataError, match="1 labels, 2 scores"):
        metric([1.0], [1.0, 2.0])
