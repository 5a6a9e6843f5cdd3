import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from infnet.data.layout import TaskLayout
from infnet.evaluation.predictions import Predictions
from infnet.updating.guard import GuardSettings, judge

CLICK = TaskLayout(name="click", kind="binary", loss="bce")
WATCH = TaskLayout(name="watch", kind="regression", loss="mse", mean=5.0, std=2.0)
SETTINGS = GuardSettings()


def drawn(num, seed=0, rate=0.3):
    """True probabilities, labels drawn from them, and users."""
    rng = np.random.default_rng(seed)
    probs = 1 / (1 + np.exp(-(rng.normal(size=num) + math.log(rate / (1 - rate)))))
    return probs, (rng.random(num) < probs).astype(float), rng.integers(0, num // 3 + 1, num)


def of(scores, labels, users, task=CLICK):
    columns = (np.asarray(each, dtype=float)[:, None] for each in (labels, scores))
    return Predictions((task.name,), (task.kind,), *columns, users)


def verdict(live, candidate, labels, users, settings=SETTINGS, task=CLICK):
    return judge(of(live, labels, users, task), of(candidate, labels, users, task), (task,), users, settings)


def test_the_numbers_are_those_of_the_textbook():
    probs, labels, users = drawn(500)
    other = np.clip(probs * 0.9 + 0.02, 0, 1)
    (found,) = verdict(probs, other, labels, users).tasks
    assert found.loss.live == pytest.approx(log_loss(labels, probs))
    assert found.loss.candidate == pytest.approx(log_loss(labels, other))
    assert found.loss.difference == pytest.approx(found.loss.candidate - found.loss.live)
    assert found.auc.live == pytest.approx(roc_auc_score(labels, probs))
    assert found.auc.candidate == pytest.approx(roc_auc_score(labels, other))
    assert found.calibration.candidate == pytest.approx(other.mean() / labels.mean())
    assert (found.rows, found.positives) == (500, int(labels.sum()))


def test_standard_errors_are_how_much_the_numbers_vary():
    """Over many draws, each of users with three like rows."""
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(80), 3)
        of_user = np.repeat(rng.normal(size=80), 3)
        probs = 1 / (1 + np.exp(-of_user))
        labels = (rng.random(80)[users] < probs).astype(float)  # the same for all rows of a user
        noisy = 1 / (1 + np.exp(-(of_user + np.repeat(rng.normal(size=80), 3))))
        found.append(verdict(probs, noisy, labels, users).tasks[0])
    for name in ("loss", "auc"):
        differences = [getattr(each, name).difference for each in found]
        errors = [getattr(each, name).error for each in found]
        assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.15)
    ratios = [each.calibration.candidate for each in found]
    assert np.mean([each.calibration.error for each in found]) == pytest.approx(np.std(ratios), rel=0.2)


def test_equal_models_are_accepted_and_noise_is_no_reason_to_refuse():
    probs, labels, users = drawn(2000)
    assert verdict(probs, probs, labels, users).accepted
    refused = 0
    for seed in range(200):
        probs, labels, users = drawn(600, seed)
        rng = np.random.default_rng(1000 + seed)
        live, candidate = (np.clip(probs * np.exp(0.2 * rng.normal(size=600)), 0.001, 0.999) for _ in range(2))
        refused += not verdict(live, candidate, labels, users).accepted
    assert refused <= 3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: np.clip(p * 0.5, 0, 1), "click predicts 0.49 times what happens (live: 0.97; wanted 0.8 to 1.25)"),
        (lambda p: np.clip(p * 1.6, 0, 0.99), "times what happens"),
        (lambda p: 1 - p, "click AUC"),
        (lambda p: np.full_like(p, p.mean()), "click loss"),
    ],
)
def test_a_worse_or_uncalibrated_candidate_is_refused_with_the_numbers(spoil, reason):
    probs, labels, users = drawn(2000)
    found = verdict(probs, spoil(probs), labels, users)
    assert not found.accepted
    assert reason in "; ".join(found.reasons)
    assert verdict(spoil(probs), probs, labels, users).accepted


def test_a_loss_within_the_tolerance_is_let_pass_however_sure_it_is():
    probs, labels, users = drawn(200_000)
    slightly = np.clip(probs * 1.03, 0, 1)
    found = verdict(probs, slightly, labels, users)
    assert found.tasks[0].loss.difference > 3 * found.tasks[0].loss.error > 0
    assert found.accepted
    assert not verdict(probs, slightly, labels, users, replace(SETTINGS, loss_tolerance=0.0)).accepted


def test_an_uncalibrated_candidate_may_follow_a_live_model_that_is_further_off():
    probs, labels, users = drawn(2000)
    half, third = probs * 0.5, probs * 0.33
    assert verdict(third, half, labels, users).accepted
    assert not verdict(half, third, labels, users).accepted


def test_with_few_rows_the_setting_decides():
    probs, labels, users = drawn(60)
    worse = np.clip(1 - probs, 0.01, 0.99)
    for when_unsure, same, spoilt in (("careful", True, False), ("accept", True, True), ("refuse", False, False)):
        settings = replace(SETTINGS, when_unsure=when_unsure)
        found = verdict(probs, probs, labels, users, settings)
        assert (found.accepted, found.is_sure) == (same, False)
        assert verdict(probs, worse, labels, users, settings).accepted == spoilt
    (reason,) = verdict(probs, probs, labels, users, replace(SETTINGS, when_unsure="refuse")).reasons
    assert reason == "click has too few held-out labels to judge by (60)"
    assert verdict(probs, probs, np.zeros(60), users).tasks[0].auc is None


@pytest.mark.parametrize("num", [0, 1])
def test_next_to_nothing_can_be_judged_without_an_error(num):
    found = verdict(np.full(num, 0.2), np.full(num, 0.3), np.zeros(num), np.arange(num))
    assert (found.is_sure, found.rows) == (False, num)
    assert found.accepted == (num == 0)
    json.dumps(found.as_json(), allow_nan=False)


def test_unknown_labels_are_left_out():
    probs, labels, users = drawn(800)
    hidden = np.where(np.arange(800) % 2, labels, np.nan)
    half = np.arange(800) % 2 == 1
    found, wanted = (
        verdict(probs, probs**2, hidden, users),
        verdict(probs[half], probs[half] ** 2, labels[half], users[half]),
    )
    assert found.tasks == wanted.tasks


def test_a_regression_is_judged_by_its_squared_error_in_deviations():
    rng = np.random.default_rng(0)
    labels, users = rng.normal(5, 2, 1000), np.arange(1000)
    near, far = labels + rng.normal(0, 0.5, 1000), labels + rng.normal(0, 2, 1000)
    found = verdict(near, far, labels, users, task=WATCH)
    assert found.tasks[0].loss.candidate == pytest.approx((((far - labels) / 2) ** 2).mean())
    assert not found.accepted
    assert found.tasks[0].auc is found.tasks[0].calibration is None
    assert verdict(far, near, labels, users, task=WATCH).accepted
    paired = (((far - labels) / 2) ** 2) - (((near - labels) / 2) ** 2)
    assert found.tasks[0].loss.error == pytest.approx(stats.sem(paired), rel=0.01)
