import numpy as np
import pytest
import torch
from torch import nn

from infnet.errors import DataError
from infnet.evaluation.evaluate import split_metrics
from infnet.evaluation.predict import predict
from infnet.models import ModelConfig, RankingModel, predictions
from random_batches import make_batch, make_layout

LAYOUT = make_layout(tasks=3, regression=True)


class ItemScorer(RankingModel):
    """Scores a candidate by its item alone, and notes how it was called."""

    def __init__(self):
        super().__init__(LAYOUT, ModelConfig())
        self.by_item = nn.Parameter(torch.linspace(-2, 2, 3 * 64).reshape(64, 3))
        self.dropout = nn.Dropout(0.9)
        self.calls = []

    def forward(self, batch):
        logits = self.dropout(self.by_item[batch.candidate_item.long()])
        self.calls.append((self.training, torch.is_inference_mode_enabled(), tuple(logits.shape)))
        return logits


class Batches:
    def __init__(self, *batches):
        self.of = {"test": batches, "none": ()}

    def batches(self, split, batch_size, gaps=False):
        yield from self.of[split]


def test_every_real_candidate_comes_back_once_in_order_with_its_user():
    batches = [make_batch(LAYOUT, 5, 4, seed=1, padded=True), make_batch(LAYOUT, 3, 2, seed=2, padded=True)]
    model = ItemScorer()
    found = predict(model, Batches(*batches), "test")

    users, labels, scores = [], [], []
    for batch in batches:
        for request in range(batch.num_requests):
            for candidate in range(batch.num_candidates):
                if batch.present[request, candidate]:
                    users.append(int(batch.user_index[request]))
                    labels.append(batch.labels[request, candidate].tolist())
                    logits = model.by_item[int(batch.candidate_item[request, candidate])].detach()
                    scores.append(predictions(logits, LAYOUT.tasks).tolist())
    assert len(found) < 5 * 4 + 3 * 2  # some were padding
    assert found.users.tolist() == users
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12)


def test_scores_are_probabilities_for_binary_tasks_and_label_units_for_regressions():
    model, batch = ItemScorer(), make_batch(LAYOUT, 6, 2)
    found = predict(model, Batches(batch), "test")
    assert found.tasks == ("t0", "t1", "watch")
    assert found.kinds == ("binary", "binary", "regression")
    assert ((found.scores[:, :2] > 0) & (found.scores[:, :2] < 1)).all()
    standardised = model.by_item[batch.candidate_item.flatten().long(), 2].detach().numpy()
    np.testing.assert_allclose(found.scores[:, 2], standardised * 2.0 + 3.0, rtol=1e-6)  # the layout's std and mean


def test_the_model_runs_in_evaluation_mode_without_gradients_and_keeps_its_own_mode():
    for mode in (True, False):
        model = ItemScorer().train(mode)
        predict(model, Batches(make_batch(LAYOUT, 4, 2)), "test")
        assert model.calls == [(False, True, (4, 2, 3))]
        assert model.training is mode


def test_the_mode_comes_back_even_if_the_model_fails():
    model = ItemScorer().train()
    model.by_item = nn.Parameter(torch.zeros(1, 3))
    with pytest.raises(IndexError):
        predict(model, Batches(make_batch(LAYOUT, 4, 2)), "test")
    assert model.training


def test_a_split_without_rows_gives_empty_predictions():
    found = predict(ItemScorer(), Batches(), "none")
    assert found.labels.shape == found.scores.shape == (0, 3)


def test_batches_without_labels_are_refused():
    batch = make_batch(LAYOUT, 2, 2)
    unlabelled = type(batch)(**{**vars(batch), "labels": None})
    with pytest.raises(DataError, match="split 'test' has no labels"):
        predict(ItemScorer(), Batches(unlabelled), "test")


def test_progress_counts_rows_not_padding():
    counted = []
    batches = [make_batch(LAYOUT, 5, 4, seed=1, padded=True), make_batch(LAYOUT, 3, 2, seed=2)]
    found = predict(ItemScorer(), Batches(*batches), "test", on_batch=counted.append)
    assert counted == [int(batches[0].present.sum()), 6]
    assert sum(counted) == len(found)


def test_training_sees_flat_names_of_all_metrics():
    metrics = split_metrics(Batches(make_batch(LAYOUT, 40, 3)))(ItemScorer(), "test")
    assert {"mean_auc", "mean_gauc", "t0_auc", "t1_gauc", "t0_logloss", "watch_r2", "watch_rmse"} <= set(metrics)
    assert metrics["mean_auc"] == pytest.approx((metrics["t0_auc"] + metrics["t1_auc"]) / 2)
