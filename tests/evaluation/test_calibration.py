import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from infnet.errors import DataError, SpecError
from infnet.evaluation.calibration import LOG_LOSS_EPS, expected_calibration_error, log_loss, pcoc

PROBS = st.one_of(st.floats(0, 1), st.integers(0, 8).map(lambda n: n / 8))
ROWS = st.lists(st.tuples(st.booleans(), PROBS), min_size=1, max_size=60)


def columns(rows):
    labels, probs = zip(*rows, strict=True)
    return np.array(labels, dtype=bool), np.array(probs, dtype=np.float64)


def ece_by_loop(labels, probs, num_bins, bins):
    """Row by row: the bin of each, then the gap of each bin."""
    members = {}
    for row, prob in enumerate(probs):
        if bins == "equal_width":
            which = min(int(prob * num_bins), num_bins - 1)
        else:
            which = sum(other < prob for other in probs) * num_bins // len(probs)
        members.setdefault(which, []).append(row)
    gaps = [len(rows) * abs(np.mean(probs[rows]) - np.mean(labels[rows])) for rows in members.values()]
    return sum(gaps) / len(probs)


@given(rows=ROWS)
def test_log_loss_agrees_with_scikit_learn_on_clipped_probs(rows):
    labels, probs = columns(rows)
    clipped = np.clip(probs, LOG_LOSS_EPS, 1 - LOG_LOSS_EPS)
    assert log_loss(labels, probs) == pytest.approx(sklearn_metrics.log_loss(labels, clipped, labels=[False, True]))


def test_being_certain_and_wrong_costs_what_eps_says():
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(LOG_LOSS_EPS))
    assert log_loss([0], [1.0], eps=1e-3) == pytest.approx(-math.log(1e-3))


def test_log_loss_of_a_coin_is_log_two():
    assert log_loss([0, 1, 1], np.full(3, 0.5, dtype=np.float32)) == pytest.approx(math.log(2))


def test_pcoc_is_mean_prob_over_mean_label():
    assert pcoc([0, 1, 0, 1], [0.5, 1.0, 0.5, 1.0]) == 1.5
    assert pcoc([0, 1, 0, 1], [0.25, 0.25, 0.25, 0.25]) == 0.5


def test_pcoc_without_positives_is_undefined():
    assert math.isnan(pcoc([0, 0], [0.1, 0.2]))


@pytest.mark.parametrize("bins", ["equal_frequency", "equal_width"])
@given(rows=ROWS, num_bins=st.integers(1, 12))
def test_calibration_error_equals_its_definition(rows, num_bins, bins):
    labels, probs = columns(rows)
    found = expected_calibration_error(labels, probs, num_bins, bins)
    assert found == pytest.approx(ece_by_loop(labels, probs, num_bins, bins), abs=1e-12)


@pytest.mark.parametrize("bins", ["equal_frequency", "equal_width"])
@given(rows=ROWS, seed=st.integers(0, 99))
def test_calibration_error_ignores_the_order_of_rows(rows, seed, bins):
    labels, probs = columns(rows)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    assert expected_calibration_error(labels[shuffled], probs[shuffled], 5, bins) == pytest.approx(
        expected_calibration_error(labels, probs, 5, bins), abs=1e-12
    )


def test_calibration_error_is_small_for_true_probs_and_grows_with_bias():
    rng = np.random.default_rng(3)
    probs = rng.beta(1, 20, 200_000)
    labels = rng.random(200_000) < probs
    assert expected_calibration_error(labels, probs) < 0.003
    assert expected_calibration_error(labels, np.minimum(probs + 0.05, 1)) == pytest.approx(0.05, abs=0.003)


def test_equal_frequency_bins_see_what_equal_width_bins_average_away():
    # Half the rows too low by 0.01, half too high by 0.01, all within one bin of width 0.1.
    probs = np.repeat([0.02, 0.04], 1000)
    labels = np.tile(np.arange(1000) < 30, 2)
    assert expected_calibration_error(labels, probs, 10) == pytest.approx(0.01)
    assert expected_calibration_error(labels, probs, 10, "equal_width") == pytest.approx(0.0, abs=1e-9)


def test_the_last_equal_width_bin_includes_one():
    # Apart, the two rows are off by 0.1 and 1; in one bin their errors cancel to (0.9 + 1 - 1) / 2.
    assert expected_calibration_error([1, 0], [0.9, 1.0], 10, "equal_width") == pytest.approx(0.45)


def test_no_rows_are_undefined():
    assert math.isnan(log_loss([], []))
    assert math.isnan(pcoc([], []))
    assert math.isnan(expected_calibration_error([], []))


@pytest.mark.parametrize("metric", [log_loss, pcoc, expected_calibration_error])
@pytest.mark.parametrize("bad", [-0.1, 1.1, -7.0])
def test_logits_are_refused_where_probabilities_are_wanted(metric, bad):
    with pytest.raises(DataError, match=r"probabilities row 1 is .*, wanted 0 to 1; apply the sigmoid"):
        metric([0, 1], [0.5, bad])


@pytest.mark.parametrize("metric", [log_loss, pcoc, expected_calibration_error])
def test_nan_and_lengths_that_differ_are_refused(metric):
    with pytest.raises(DataError, match="row 0 is nan"):
        metric([0, 1], [math.nan, 0.5])
    with pytest.raises(DataError, match="1 labels, 2 probabilities"):
        metric([0], [0.5, 0.5])


def test_unknown_bins_are_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="did you mean 'equal_width'"):
        expected_calibration_error([0, 1], [0.1, 0.2], bins="equal_widths")
    with pytest.raises(SpecError, match="num_bins is 0"):
        expected_calibration_error([0, 1], [0.1, 0.2], num_bins=0)
