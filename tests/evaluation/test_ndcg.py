import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from infnet.errors import SpecError
from infnet.evaluation.ndcg import ndcg_at, recall_at

ROWS = st.lists(st.tuples(st.integers(-2, 2), st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)


def columns(rows):
    users, labels, scores = zip(*rows, strict=True)
    return np.array(labels, dtype=bool), np.array(scores, dtype=np.float64), np.array(users, dtype=np.int64)


def over_all_tie_orders(metric, labels, scores):
    """Mean of ``metric(labels, best first)`` over every order of equal scores."""
    groups = [labels[scores == score].tolist() for score in sorted(set(scores.tolist()), reverse=True)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    return np.mean([metric([label for group in order for label in group]) for order in orders])


def ndcg_of_list(k):
    def dcg(ranked):
        return sum(label / math.log2(1 + rank) for rank, label in enumerate(ranked[:k], start=1))

    return lambda ranked: dcg(ranked) / dcg(sorted(ranked, reverse=True))


def recall_of_list(k):
    return lambda ranked: sum(ranked[:k]) / sum(ranked)


@pytest.mark.parametrize(("metric", "of_list"), [(ndcg_at, ndcg_of_list), (recall_at, recall_of_list)])
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8),
    k=st.integers(1, 9),
)
def test_ties_give_the_expected_value_over_all_their_orders(metric, of_list, rows, k):
    labels, scores, users = columns(rows)
    expected = [
        over_all_tie_orders(of_list(k), labels[users == user], scores[users == user])
        for user in set(users.tolist())
        if labels[users == user].any()
    ]
    assert metric(k, labels, scores, users) == pytest.approx(np.mean(expected) if expected else math.nan, nan_ok=True)


@given(rows=ROWS, k=st.integers(1, 12))
def test_ndcg_agrees_with_scikit_learn(rows, k):
    labels, scores, users = columns(rows)
    expected = []
    for user in set(users.tolist()):
        own = users == user
        if labels[own].any():
            # scikit-learn refuses a single row, where there is no order to get wrong.
            expected.append(ndcg_score([labels[own]], [scores[own]], k=k) if own.sum() > 1 else 1.0)
    assert ndcg_at(k, labels, scores, users) == pytest.approx(np.mean(expected) if expected else math.nan, nan_ok=True)


@pytest.mark.parametrize("metric", [ndcg_at, recall_at])
@given(rows=ROWS, k=st.integers(1, 12), seed=st.integers(0, 99))
def test_row_order_and_monotone_transforms_change_nothing(metric, rows, k, seed):
    labels, scores, users = columns(rows)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    again = metric(k, labels[shuffled], np.exp(scores[shuffled] / 3), users[shuffled])
    assert again == pytest.approx(metric(k, labels, scores, users), nan_ok=True)


def test_recall_by_hand():
    labels, scores = [1, 0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert recall_at(1, labels, scores, [3] * 5) == pytest.approx(1 / 3)
    assert recall_at(3, labels, scores, [3] * 5) == pytest.approx(2 / 3)
    assert recall_at(99, labels, scores, [3] * 5) == 1.0


def test_ndcg_by_hand():
    best = 1 + 1 / math.log2(3)
    assert ndcg_at(2, [1, 0, 1], [0.9, 0.8, 0.7], [3, 3, 3]) == pytest.approx(1 / best)
    assert ndcg_at(3, [1, 0, 1], [0.9, 0.8, 0.7], [3, 3, 3]) == pytest.approx(1.5 / best)


@pytest.mark.parametrize("metric", [ndcg_at, recall_at])
def test_users_without_a_positive_are_left_out(metric):
    assert metric(1, [1, 0, 0, 0], [0.9, 0.1, 0.5, 0.6], [1, 1, 2, 2]) == 1.0


@pytest.mark.parametrize("metric", [ndcg_at, recall_at])
def test_nobody_to_judge_is_undefined(metric):
    assert math.isnan(metric(3, [0, 0], [0.1, 0.2], [1, 2]))
    assert math.isnan(metric(3, [], [], []))


@pytest.mark.parametrize("metric", [ndcg_at, recall_at])
@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(metric, k):
    with pytest.raises(SpecError, match=f"k is {k}, wanted at least 1"):
        metric(k, [1], [0.1], [1])
