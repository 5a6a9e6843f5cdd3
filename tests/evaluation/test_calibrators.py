import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infnet.errors import DataError
from infnet.evaluation.auc import auc
from infnet.evaluation.calibration import pcoc
from infnet.evaluation.calibrators import Isotonic, Platt, TaskCalibration, fit_calibration

METHODS = ("isotonic", "platt")


def clicks(seed, num=20_000, bias=0.0, slope=1.0):
    """Labels, and probabilities whose logits are off by a line."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 1, num)
    labels = (rng.random(num) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, 1 / (1 + np.exp(-((logits - bias) / slope)))


@pytest.mark.parametrize("method", METHODS)
def test_calibrated_probabilities_are_right_on_rows_not_seen_and_keep_their_order(method):
    curve = fit_calibration(*clicks(0, bias=1.0, slope=0.5), "binary", method).overall
    labels, probs = clicks(1, bias=1.0, slope=0.5)
    assert abs(pcoc(labels, probs) - 1) > 0.2
    found = curve.apply(probs)
    assert pcoc(labels, found) == pytest.approx(1, abs=0.05)
    assert auc(labels, found) == pytest.approx(auc(labels, probs), abs=1e-9)
    low, high = probs < np.quantile(probs, 0.1), probs > np.quantile(probs, 0.9)
    for part in (low, high):
        assert found[part].mean() == pytest.approx(labels[part].mean(), rel=0.25)


def test_platt_finds_the_line():
    curve = fit_calibration(*clicks(0, num=200_000, bias=1.0, slope=0.5), "binary", "platt").overall
    assert isinstance(curve, Platt)
    assert (curve.slope, curve.intercept) == pytest.approx((0.5, 1.0), abs=0.03)


def test_a_regression_gets_its_mean_back():
    rng = np.random.default_rng(0)
    predictions = rng.gamma(2, 10, 5000)
    labels = 0.5 * predictions + rng.gamma(1, 3, 5000)
    curve = fit_calibration(labels, predictions, "regression", "platt").overall
    assert isinstance(curve, Isotonic)
    assert curve.apply(predictions).mean() == pytest.approx(labels.mean(), rel=1e-3)


def test_segments_have_their_own_curves_where_they_have_rows():
    labels, probs = clicks(0)
    segments = np.where(np.arange(len(labels)) % 2 == 0, "a", "b")
    segments[:500] = "rare"
    shifted = np.where(segments == "a", probs**2, probs)
    found = fit_calibration(labels, shifted, "binary", "isotonic", segments)
    assert set(found.segments) == {"a", "b"}
    for name in ("a", "b"):
        here = segments == name
        assert pcoc(labels[here], found.segments[name].apply(shifted[here])) == pytest.approx(1, abs=0.01)


def test_without_enough_labels_there_is_no_curve():
    labels, probs = clicks(0)
    assert fit_calibration(labels[:900], probs[:900], "binary", "platt") is None
    assert fit_calibration(np.zeros(5000), probs[:5000], "binary", "platt") is None
    assert fit_calibration(np.ones(5000), probs[:5000], "binary", "isotonic") is None
    assert fit_calibration(np.full(5000, np.nan), probs[:5000], "binary", "isotonic") is None


def test_missing_labels_do_not_matter():
    labels, probs = clicks(0)
    more = np.append(labels, np.full(1000, np.nan)), np.append(probs, np.linspace(0, 1, 1000))
    for method in METHODS:
        assert fit_calibration(*more, "binary", method) == fit_calibration(labels, probs, "binary", method)


def test_a_model_that_is_the_wrong_way_round_is_not_mended():
    labels, probs = clicks(0)
    with pytest.raises(DataError, match="labels fall where predictions rise"):
        fit_calibration(labels, 1 - probs, "binary", "platt")


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=20), seed=st.integers(0, 20))
def test_probabilities_stay_probabilities(values, seed):
    labels, probs = clicks(seed, num=2000)
    for method in METHODS:
        found = fit_calibration(labels, probs, "binary", method).overall.apply(np.array(values))
        assert ((found >= 0) & (found <= 1)).all()


def test_it_comes_back_from_json():
    labels, probs = clicks(0, num=3000)
    for method in METHODS:
        found = fit_calibration(labels, probs, "binary", method, np.full(3000, "a"))
        assert TaskCalibration.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "isotonic", "predictions": [0, 1], "values": [0.5, 0.4]},
        {"kind": "isotonic", "predictions": [1, 0], "values": [0.4, 0.5]},
        {"kind": "isotonic", "predictions": [0], "values": [0.4, 0.5]},
        {"kind": "isotonic", "predictions": [], "values": []},
        {"kind": "platt", "slope": -1, "intercept": 0},
        {"kind": "platt", "slope": float("nan"), "intercept": 0},
        {"kind": "spline"},
    ],
)
def test_what_is_no_curve_is_refused(broken):
    with pytest.raises(ValidationError):
        TaskCalibration.model_validate({"overall": broken})


def test_a_segment_whose_labels_fall_goes_by_the_curve_of_all():
    rng = np.random.default_rng(0)
    predictions = rng.uniform(0.05, 0.95, 8000)
    labels = (rng.random(8000) < predictions).astype(float)
    segments = np.where(np.arange(8000) % 4 == 0, "odd", "usual")
    odd = segments == "odd"
    labels[odd] = (rng.random(odd.sum()) < 1 - predictions[odd]).astype(float)
    found = fit_calibration(labels, predictions, "binary", "platt", segments)
    assert set(found.segments) == {"usual"}
    with pytest.raises(DataError, match="labels fall where predictions rise"):
        fit_calibration(labels[odd], predictions[odd], "binary", "platt")
