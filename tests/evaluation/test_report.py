import io
import json
import math

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import r2_score, roc_auc_score

from infnet.errors import DataError
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.report import evaluate_predictions

NAMES = ("click", "like", "long_view", "watch_time")
KINDS = ("binary", "binary", "binary", "regression")


def predictions_of(num_rows=4000, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.beta(2, 5, (num_rows, 3))
    labels = np.column_stack([rng.random((num_rows, 3)) < probs, rng.exponential(20_000, num_rows)])
    scores = np.column_stack([probs, labels[:, 3] * 0.5 + 9000])
    return Predictions(NAMES, KINDS, labels, scores, rng.integers(0, 100, num_rows))


def text_of(table, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def test_json_has_the_promised_shape():
    found = evaluate_predictions(predictions_of()).as_json()
    assert list(found) == ["tasks", "mean", "counts"]
    assert list(found["tasks"]) == list(NAMES)
    assert list(found["tasks"]["click"]) == ["auc", "gauc", "logloss", "pcoc", "ece", "ndcg@10", "recall@10"]
    assert list(found["tasks"]["watch_time"]) == ["r2", "mae", "rmse"]
    assert list(found["mean"]) == ["auc", "gauc"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_numbers_are_those_of_scikit_learn():
    predictions = predictions_of()
    found = evaluate_predictions(predictions).as_json()
    labels, scores = predictions.labels, predictions.scores
    aucs = [roc_auc_score(labels[:, task], scores[:, task]) for task in range(3)]
    assert [found["tasks"][name]["auc"] for name in NAMES[:3]] == pytest.approx(aucs)
    assert found["mean"]["auc"] == pytest.approx(np.mean(aucs))
    assert found["tasks"]["like"]["logloss"] == pytest.approx(sklearn_log_loss(labels[:, 1], scores[:, 1]))
    assert found["tasks"]["watch_time"]["r2"] == pytest.approx(r2_score(labels[:, 3], scores[:, 3]))
    judged = [own for own in (predictions.users == user for user in range(100)) if 0 < labels[own, 0].sum() < own.sum()]
    by_user = [roc_auc_score(labels[own, 0], scores[own, 0]) for own in judged]
    assert found["tasks"]["click"]["gauc"] == pytest.approx(np.average(by_user, weights=[own.sum() for own in judged]))
    assert found["counts"]["tasks"]["click"]["judged_users"] == len(judged)


def test_unobserved_labels_count_for_nothing():
    whole = predictions_of()
    hidden = np.random.default_rng(1).random(whole.labels.shape) < 0.3
    labels = np.where(hidden, math.nan, whole.labels)
    # What the model says about an unobserved label must not matter either.
    scores = np.where(hidden, math.nan, whole.scores)
    found = evaluate_predictions(Predictions(NAMES, KINDS, labels, scores, whole.users)).as_json()
    for column, name in enumerate(NAMES):
        kept = ~hidden[:, column]
        alone = Predictions(
            (name,), (KINDS[column],), whole.labels[kept][:, [column]], whole.scores[kept][:, [column]],
            whole.users[kept],
        )  # fmt: skip
        assert found["tasks"][name] == evaluate_predictions(alone).as_json()["tasks"][name]
        assert found["counts"]["tasks"][name]["rows"] == kept.sum()
    assert found["counts"]["rows"] == 4000


def test_what_is_undefined_is_null_for_scripts_and_a_word_for_people():
    whole = predictions_of(50)
    labels = whole.labels.copy()
    labels[:, 1] = 0
    report = evaluate_predictions(Predictions(NAMES, KINDS, labels, whole.scores, whole.users))
    like = report.as_json()["tasks"]["like"]
    assert [name for name, value in like.items() if value is None] == ["auc", "gauc", "pcoc", "ndcg@10", "recall@10"]
    assert text_of(report.as_table()).count("undefined") == 5
    # The mean is over the tasks that have an AUC.
    others = [report.as_json()["tasks"][name]["auc"] for name in ("click", "long_view")]
    assert report.as_json()["mean"]["auc"] == pytest.approx(np.mean(others))


def test_no_rows_give_nulls_not_a_crash():
    empty = Predictions(NAMES, KINDS, np.empty((0, 4)), np.empty((0, 4)), np.empty(0, np.int64))
    found = evaluate_predictions(empty).as_json()
    assert all(value is None for metrics in found["tasks"].values() for value in metrics.values())
    assert found["mean"] == {"auc": None, "gauc": None}
    assert found["counts"]["rows"] == 0


def test_regressions_alone_have_no_mean_auc():
    predictions = Predictions(("revenue",), ("regression",), np.ones((2, 1)), np.ones((2, 1)), np.array([1, 2]))
    assert evaluate_predictions(predictions).as_json()["mean"] == {"auc": None, "gauc": None}


def test_flat_metrics_have_one_average_of_both_means():
    flat = evaluate_predictions(predictions_of()).as_flat()
    assert flat["mean"] == pytest.approx((flat["mean_auc"] + flat["mean_gauc"]) / 2)
    assert list(flat)[:4] == ["mean", "mean_auc", "mean_gauc", "click_auc"]
    whole = predictions_of(50)
    lonely = Predictions(NAMES, KINDS, whole.labels, whole.scores, np.arange(50))  # nobody has two rows: no gAUC
    flat = evaluate_predictions(lonely).as_flat()
    assert math.isnan(flat["mean_gauc"])
    assert flat["mean"] == flat["mean_auc"]


def test_flat_metrics_of_regressions_alone_have_no_mean():
    predictions = Predictions(("revenue",), ("regression",), np.ones((2, 1)), np.ones((2, 1)), np.array([1, 2]))
    assert list(evaluate_predictions(predictions).as_flat()) == ["revenue_r2", "revenue_mae", "revenue_rmse"]


def test_k_names_and_sets_the_depth():
    report = evaluate_predictions(predictions_of(), k=3)
    metrics = report.as_json()["tasks"]["click"]
    assert "ndcg@3" in metrics
    assert metrics["recall@3"] < evaluate_predictions(predictions_of()).as_json()["tasks"]["click"]["recall@10"]


def test_the_table_fits_100_columns_and_says_all():
    text = text_of(evaluate_predictions(predictions_of()).as_table("run, test split"))
    assert max(map(len, text.splitlines())) <= 100
    for word in (*NAMES, "mean", "auc", "gauc", "logloss", "pcoc", "ece", "ndcg@10", "recall@10", "r2", "mae", "rmse"):
        assert word in text
    assert "…" not in text
    assert "4,000" in text


def test_a_diverged_model_is_refused_by_task_and_row():
    whole = predictions_of(20)
    scores = whole.scores.copy()
    scores[7, 1] = math.nan
    with pytest.raises(DataError, match=r"task 'like', .*scores row 7 is nan"):
        evaluate_predictions(Predictions(NAMES, KINDS, whole.labels, scores, whole.users))


def test_a_report_survives_its_own_serialisation():
    report = evaluate_predictions(predictions_of(50))
    assert type(report).model_validate(report.model_dump()) == report
