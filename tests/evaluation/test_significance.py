import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet.errors import DataError, SpecError
from infnet.evaluation import significance
from infnet.evaluation.auc import auc, gauc
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.significance import Resampled, UserBootstrap, WeightedAuc, compare, holm

rows = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)


def columns(found):
    return (np.array(column) for column in zip(*found, strict=True))


@given(found=rows, counts=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weights_count_like_rows_that_stand_there_several_times(found, counts):
    users, labels, scores = columns(found)
    repeated = np.repeat(np.arange(len(users)), np.array(counts)[users])
    weighted = WeightedAuc(labels, scores, users)(np.array([counts, [1] * 5], dtype=float))
    assert weighted.tolist() == pytest.approx(
        [auc(labels[repeated], scores[repeated]), auc(labels, scores)], nan_ok=True
    )


def random_predictions(rng, num_users=30, rows_per_user=6, quality=(1.0, 0.5), rates=(0.4, 0.3)):
    n = num_users * rows_per_user
    labels = (rng.random((n, len(rates))) < rates).astype(np.float32)
    scores = np.array(quality) * labels + rng.normal(size=labels.shape)
    users = np.repeat(rng.permutation(num_users) * 7, rows_per_user)
    watched = rng.normal(size=(n, 1))
    names = tuple(f"t{i}" for i in range(len(rates)))
    return Predictions(
        tasks=(*names, "watch"),
        kinds=(*("binary" for _ in names), "regression"),
        labels=np.concatenate([labels, watched], axis=1),
        scores=np.concatenate([scores, watched], axis=1),
        users=users,
    )


def test_a_resample_is_the_metric_of_a_log_in_which_users_stand_as_often_as_they_were_drawn():
    predictions = random_predictions(np.random.default_rng(0))
    predictions.labels[::5, 1] = np.nan
    bootstrap = UserBootstrap(predictions, replicates=20, seed=3)
    found = bootstrap.resample(predictions)
    assert found.parts == ("t0", "t1", "mean")
    _, code = np.unique(predictions.users, return_inverse=True)
    for replicate, counts in [(None, np.ones(30)), *enumerate(bootstrap.counts(0, 20))]:
        values = found.values if replicate is None else found.draws[:, :, replicate]
        assert counts.sum() == 30
        wanted = []
        for task in range(2):
            times = np.where(np.isnan(predictions.labels[:, task]), 0, counts[code]).astype(int)
            seen = np.repeat(np.arange(len(code)), times)
            labels, scores = predictions.labels[seen, task], predictions.scores[seen, task]
            wanted.append((auc(labels, scores), gauc(labels, scores, predictions.users[seen])))
        assert np.allclose(values[:, :2], np.array(wanted).T)
        assert values[:, 2] == pytest.approx(np.mean(wanted, axis=0))


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    predictions = random_predictions(np.random.default_rng(1))

    def draws(seed=0):
        return UserBootstrap(predictions, replicates=50, seed=seed).resample(predictions).draws

    first = draws()
    np.random.seed(5)  # noqa: NPY002
    assert np.array_equal(draws(), first)
    assert not np.array_equal(draws(seed=1), first)
    monkeypatch.setattr(significance, "_CHUNK", 1)
    assert np.allclose(draws(), first, rtol=1e-12)


def test_models_see_the_same_users_so_that_what_they_share_cancels():
    predictions = random_predictions(np.random.default_rng(2))
    bootstrap = UserBootstrap(predictions, replicates=100)
    run = bootstrap.resample(predictions)
    alone = compare([run], [run])["auc"]["mean"]
    assert (alone.value, alone.low, alone.high, alone.p_value) == (0, 0, 0, 1)
    better = Predictions(
        predictions.tasks,
        predictions.kinds,
        predictions.labels,
        predictions.scores + 2.0 * predictions.labels,
        predictions.users,
    )
    found = compare([bootstrap.resample(better)], [run])["gauc"]["t1"]
    assert found.low > 0.1
    assert found.low < found.value < found.high
    assert found.p_value == pytest.approx(1 / 101)
    opposite = compare([run], [bootstrap.resample(better)])["gauc"]["t1"]
    assert (opposite.value, opposite.low, opposite.high) == pytest.approx((-found.value, -found.high, -found.low))


def binormal_difference(rng, first, second, num_users=80):
    """Two models whose AUCs are known, on a log in which a user's rows share the luck of the user."""
    rows = 5
    users = np.repeat(np.arange(num_users), rows)
    labels = (rng.random(len(users)) < 0.4).astype(np.float32)
    shared = rng.normal(size=len(users))
    luck = rng.normal(size=(2, num_users))

    def predictions(quality, own):
        noise = 0.6 * shared + 0.5 * rng.normal(size=len(users)) + 0.6 * luck[own][users]
        scores = (quality * labels + noise)[:, None]
        return Predictions(("click",), ("binary",), labels[:, None], scores, users)

    a, b = predictions(first, 0), predictions(second, 1)
    bootstrap = UserBootstrap(a, replicates=200, seed=int(rng.integers(1 << 30)))
    return compare([bootstrap.resample(a)], [bootstrap.resample(b)])


def binormal_auc(quality, variance):
    return 0.5 * (1 + math.erf(quality / math.sqrt(2 * variance) / math.sqrt(2)))


@pytest.mark.parametrize(("metric", "variance"), [("auc", 0.36 + 0.25 + 0.36), ("gauc", 0.36 + 0.25)])
def test_intervals_hold_a_known_difference_about_as_often_as_they_say(metric, variance):
    rng = np.random.default_rng(4)
    truth = binormal_auc(1.2, variance) - binormal_auc(0.8, variance)
    found = [binormal_difference(rng, 1.2, 0.8)[metric]["click"] for _ in range(140)]
    assert 0.90 <= np.mean([f.low <= truth <= f.high for f in found]) <= 0.985
    assert np.mean([f.value for f in found]) == pytest.approx(truth, abs=0.01)


def test_models_that_are_alike_are_told_apart_as_often_as_the_level_says():
    rng = np.random.default_rng(5)
    p_values = [binormal_difference(rng, 1.0, 1.0)["auc"]["click"].p_value for _ in range(160)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(p_values) < 0.5) <= 0.6


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_noise", [0.0, 1.0, 10.0])
def test_neither_users_nor_seeds_alone_make_a_difference(num_seeds, seed_noise):
    """Whatever dominates, models that are alike are told apart in about 5% of all comparisons."""
    rng = np.random.default_rng(6)
    rejected = 0
    for _ in range(300):
        by_user = rng.normal(size=400)
        luck = rng.normal()

        def runs(share, luck=luck, by_user=by_user):
            values = seed_noise * rng.normal(size=num_seeds) + share * luck
            return [
                Resampled(("mean",), np.full((2, 1), value), np.broadcast_to(value + share * by_user, (2, 1, 400)))
                for value in values
            ]

        found = compare(runs(1.0), runs(0.0), seed=int(rng.integers(1 << 30)))
        rejected += found["auc"]["mean"].p_value < 0.05
    assert 0.01 <= rejected / 300 <= 0.09


def test_holm_corrects_as_in_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
@settings(max_examples=50)
def test_holm_keeps_the_order_and_lowers_nothing(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(order))


def test_what_cannot_be_judged_is_undefined_and_out_of_the_mean():
    predictions = random_predictions(np.random.default_rng(7))
    predictions.labels[:, 1] = 0
    bootstrap = UserBootstrap(predictions, replicates=30)
    run = bootstrap.resample(predictions)
    assert np.isnan(run.values[:, 1]).all()
    assert run.values[:, 2] == pytest.approx(run.values[:, 0])
    assert compare([run], [run])["auc"]["t1"].as_json() == dict.fromkeys(("value", "low", "high", "p_value"))


def test_a_resample_without_positives_does_not_count():
    predictions = random_predictions(
        np.random.default_rng(8), num_users=3, rows_per_user=4, rates=(0.0,), quality=(1.0,)
    )
    predictions.labels[0, 0] = 1
    run = UserBootstrap(predictions, replicates=100).resample(predictions)
    lost = np.isnan(run.draws[0, 0])
    assert 0 < lost.sum() < 100
    found = compare([run], [run])["auc"]["t0"]
    assert found.p_value == 1
    assert not math.isnan(found.low)


def test_predictions_of_other_rows_are_refused():
    predictions = random_predictions(np.random.default_rng(9))
    bootstrap = UserBootstrap(predictions, replicates=5)
    other = random_predictions(np.random.default_rng(10))
    with pytest.raises(DataError, match="are not of the same 180 rows"):
        bootstrap.resample(other)
    few, many = bootstrap.resample(predictions), UserBootstrap(predictions, replicates=6).resample(predictions)
    with pytest.raises(DataError, match="resampled in different ways"):
        compare([few], [many])
    with pytest.raises(SpecError, match="wanted at least 1"):
        UserBootstrap(predictions, replicates=0)


def test_regression_alone_leaves_nothing_to_compare():
    rng = np.random.default_rng(11)
    amounts = rng.normal(size=(10, 1))
    predictions = Predictions(("watch",), ("regression",), amounts, amounts, np.arange(10))
    run = UserBootstrap(predictions, replicates=5).resample(predictions)
    assert run.parts == ("mean",)
    assert math.isnan(compare([run], [run])["auc"]["mean"].value)
