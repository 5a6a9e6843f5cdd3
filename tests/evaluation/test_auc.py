import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from infnet.errors import DataError, SpecError
from infnet.evaluation.auc import auc, gauc, mean_defined, mtl_auc, user_aucs

# Few users and few scores: ties, single rows and users with one kind of label come up all the time.
ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(-4, 4)), min_size=1, max_size=60)
ANY_SCORES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-52, 1.0 - 2**-53, 5e-324, -5e-324, 1e308, -1e308, 0.1, -0.1]),
)
ANY_USER = st.one_of(st.integers(0, 3), st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1, -(2**31), 2**31]))
WEIGHTS = ["impressions", "positives", "uniform"]


def columns(rows, score_type=np.float64):
    users, labels, scores = zip(*rows, strict=True)
    return np.array(labels, dtype=bool), np.array(scores, dtype=score_type), np.array(users, dtype=np.int64)


def auc_by_pairs(labels, scores):
    wins = [(p > n) + (p == n) / 2 for p in scores[labels] for n in scores[~labels]]
    return sum(wins) / len(wins) if wins else math.nan


def gauc_by_loop(labels, scores, users, weight):
    aucs, weights = [], []
    for user in sorted(set(users.tolist())):
        own = users == user
        if labels[own].all() or not labels[own].any():
            continue
        aucs.append(auc_by_pairs(labels[own], scores[own]))
        weights.append({"impressions": own.sum(), "positives": labels[own].sum(), "uniform": 1}[weight])
    return np.average(aucs, weights=weights) if aucs else math.nan


@given(rows=st.lists(st.tuples(st.just(0), st.booleans(), ANY_SCORES), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    labels, scores, _ = columns(rows)
    assert auc(labels, scores) == pytest.approx(auc_by_pairs(labels, scores), nan_ok=True, rel=1e-14)


@given(rows=ROWS)
def test_auc_agrees_with_scikit_learn(rows):
    labels, scores, _ = columns(rows)
    if labels.all() or not labels.any():
        assert math.isnan(auc(labels, scores))
    else:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("weight", WEIGHTS)
@given(rows=st.lists(st.tuples(ANY_USER, st.booleans(), ANY_SCORES), min_size=1, max_size=40))
def test_gauc_is_the_average_of_each_users_own_auc(rows, weight):
    labels, scores, users = columns(rows)
    assert gauc(labels, scores, users, weight) == pytest.approx(
        gauc_by_loop(labels, scores, users, weight), nan_ok=True, rel=1e-12
    )


@pytest.mark.parametrize("weight", WEIGHTS)
@given(rows=ROWS)
def test_gauc_with_many_ties_is_the_average_of_each_users_own_auc(rows, weight):
    labels, scores, users = columns(rows, np.float32)
    assert gauc(labels, scores, users, weight) == pytest.approx(
        gauc_by_loop(labels, scores, users, weight), nan_ok=True, rel=1e-12
    )


@given(rows=st.lists(st.tuples(ANY_USER, st.booleans(), st.integers(-4, 4)), min_size=1, max_size=40))
def test_every_user_comes_back_once_in_order_with_counts_and_auc(rows):
    labels, scores, users = columns(rows)
    by_user = user_aucs(labels, scores, users)
    assert by_user.user.tolist() == sorted(set(users.tolist()))
    for user, value, impressions, positives in zip(
        by_user.user, by_user.auc, by_user.impressions, by_user.positives, strict=True
    ):
        own = users == user
        assert (impressions, positives) == (own.sum(), labels[own].sum())
        assert value == pytest.approx(auc_by_pairs(labels[own], scores[own]), nan_ok=True)


@given(rows=ROWS, score_type=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 99))
def test_gauc_ignores_the_order_of_rows(rows, score_type, seed):
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    labels, scores, users = columns(rows, score_type)
    assert gauc(labels[shuffled], scores[shuffled] / 9, users[shuffled]) == pytest.approx(
        gauc(labels, scores / 9, users), nan_ok=True, abs=0
    )


@given(rows=ROWS)
def test_gauc_sees_order_only(rows):
    labels, scores, users = columns(rows)
    assert gauc(labels, scores / 9, users) == pytest.approx(gauc(labels, np.exp(scores / 9), users), nan_ok=True)


@given(rows=ROWS)
def test_auc_of_reversed_scores_is_the_complement(rows):
    labels, scores, _ = columns(rows)
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), nan_ok=True)


@pytest.mark.parametrize(
    "score_type", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint64, np.longdouble]
)
def test_scores_of_any_number_type_rank_alike(score_type):
    labels = np.array([1, 0, 1, 0, 1, 0, 0])
    scores = np.array([3, 3, 7, 1, 0, 0, 9], dtype=score_type)
    users = np.array([5, 5, 5, 5, 6, 6, 6])
    assert auc(labels, scores) == pytest.approx(auc_by_pairs(labels == 1, scores))
    assert gauc(labels, scores, users) == pytest.approx(gauc_by_loop(labels == 1, scores, users, "impressions"))


@pytest.mark.parametrize(
    "lower_and_higher",
    [
        np.array([1.0, 1.0 + 2**-52]),
        np.array([0.5 - 2**-54, 0.5]),
        np.array([0.0, 5e-324]),
        np.array([-5e-324, 0.0]),
        np.array([1e300, 1.0000000001e300]),
        np.array([2**24, 2**24 + 1]),
        np.array([-(2**24) - 1, -(2**24)]),
        np.array([2**63 - 2, 2**63 - 1]),
        np.array([-(2**63), -(2**63) + 1]),
        np.array([2**64 - 2, 2**64 - 1], dtype=np.uint64),
        np.array([1.0, 1.0 + 2**-23], dtype=np.float32),
        np.array([0.0, 1e-45], dtype=np.float32),
        np.array([3.0e38, 3.4e38], dtype=np.float32),
    ],
)
def test_no_two_scores_are_rounded_into_a_tie(lower_and_higher):
    assert auc([0, 1], lower_and_higher) == 1.0
    assert auc([1, 0], lower_and_higher) == 0.0
    assert gauc([0, 1], lower_and_higher, [7, 7]) == 1.0


def test_one_fine_score_late_in_the_column_keeps_its_digits():
    scores = np.repeat(np.float64(0.5), 3000)
    scores[2500] = 0.5 + 2**-53
    labels = np.zeros(3000, dtype=bool)
    labels[2500] = True
    assert auc(labels, scores) == 1.0


@pytest.mark.parametrize("score_type", [np.float32, np.float64])
def test_minus_zero_ties_with_zero(score_type):
    assert auc([0, 1], np.array([0.0, -0.0], dtype=score_type)) == 0.5
    # Beside a score that needs double precision, which takes the other way through the sort.
    assert auc([0, 1, 1], np.array([0.0, -0.0, 0.1], dtype=score_type)) == 0.75


def test_equal_scores_give_one_half():
    assert auc([0, 1, 1, 0, 1], np.full(5, 0.3)) == 0.5
    assert gauc([0, 1, 1, 0, 1], np.full(5, 0.3), [1, 1, 2, 2, 2]) == 0.5


def test_equal_scores_of_different_users_are_no_tie():
    # User 1 ranks perfectly, user 2 wrongly; the same two scores throughout.
    by_user = user_aucs([0, 1, 1, 0], np.array([0.1, 0.2, 0.1, 0.2]), [1, 1, 2, 2])
    assert by_user.auc.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_of_label_is_undefined_not_one_half(label):
    assert math.isnan(auc([label] * 3, [0.1, 0.2, 0.3]))
    assert math.isnan(gauc([label] * 3, [0.1, 0.2, 0.3], [1, 1, 2]))


def test_a_user_with_one_kind_of_label_is_left_out_weight_included():
    labels, scores, users = [0, 1, 1, 1, 1, 0], [0.1, 0.2, 0.1, 0.2, 0.3, 0.4], [1, 1, 2, 2, 2, 3]
    assert gauc(labels, scores, users) == 1.0


def test_weights_differ_as_named():
    # User 1: AUC 1, 2 rows, 1 positive. User 2: AUC 0, 4 rows, 3 positives.
    labels, scores, users = [0, 1, 1, 1, 1, 0], [0.1, 0.2, 0.1, 0.2, 0.3, 0.4], [1, 1, 2, 2, 2, 2]
    assert gauc(labels, scores, users) == pytest.approx(2 / 6)
    assert gauc(labels, scores, users, "positives") == pytest.approx(1 / 4)
    assert gauc(labels, scores, users, "uniform") == pytest.approx(1 / 2)


def test_an_unknown_weight_is_refused_with_a_suggestion():
    with pytest.raises(SpecError, match="did you mean 'positives'"):
        gauc([0, 1], [0.1, 0.2], [1, 1], "positive")


def test_no_rows_are_undefined():
    assert math.isnan(auc([], []))
    assert math.isnan(gauc([], [], []))
    assert len(user_aucs([], [], []).auc) == 0


@pytest.mark.parametrize("user_type", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_users_of_any_integer_type_are_told_apart(user_type):
    info = np.iinfo(user_type)
    users = np.array([info.max, info.min, info.max, info.min], dtype=user_type)
    by_user = user_aucs([0, 0, 1, 1], [0.1, 0.9, 0.2, 0.3], users)
    assert by_user.user.tolist() == [info.min, info.max]
    assert by_user.auc.tolist() == [0.0, 1.0]


def test_users_2_to_the_31_apart_are_told_apart():
    for gap in (2**31 - 1, 2**31, 2**31 + 1, 2**33):
        by_user = user_aucs([0, 1, 1, 0], [0.1, 0.2, 0.1, 0.2], np.array([-5, -5, gap - 5, gap - 5]))
        assert by_user.user.tolist() == [-5, gap - 5]
        assert by_user.auc.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_refused_by_row(bad):
    for call in (lambda scores: auc([0, 1, 1], scores), lambda scores: gauc([0, 1, 1], scores, [1, 1, 1])):
        with pytest.raises(DataError, match=r"scores row 1 is .*, wanted a finite number"):
            call([0.1, bad, 0.2])


@pytest.mark.parametrize("bad", [math.nan, 2, -1, 0.5])
def test_a_label_that_is_not_0_or_1_is_refused_by_row(bad):
    with pytest.raises(DataError, match=r"labels row 2 is .*, wanted 0 or 1"):
        auc([0, 1, bad], [0.1, 0.2, 0.3])


def test_columns_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 labels, 3 scores"):
        auc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match="1 users"):
        gauc([0, 1], [0.1, 0.2], [1])


def test_matrices_and_text_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 1\)"):
        auc(np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(DataError, match="users are of type"):
        gauc([0, 1], [0.1, 0.2], ["a", "b"])
    with pytest.raises(DataError, match="users are of type float64"):
        gauc([0, 1], [0.1, 0.2], [1.0, 2.0])


@given(rows=ROWS)
def test_inputs_are_left_as_they_were(rows):
    labels, scores, users = columns(rows, np.float32)
    kept = labels.copy(), scores.copy(), users.copy()
    gauc(labels, scores, users)
    auc(labels, scores)
    for before, after in zip(kept, (labels, scores, users), strict=True):
        np.testing.assert_array_equal(before, after)


def test_mtl_auc_averages_tasks_over_their_observed_rows():
    labels = np.array([[0, 1], [1, math.nan], [1, 0], [math.nan, 1]])
    scores = np.array([[0.1, 0.5], [0.2, 0.0], [0.0, 0.5], [9.0, 0.6]])
    assert mtl_auc(labels, scores) == pytest.approx((0.5 + 0.75) / 2)


def test_mtl_auc_leaves_out_an_undefined_task():
    labels, scores = np.array([[0, 1], [1, 1]]), np.array([[0.1, 0.5], [0.2, 0.0]])
    assert mtl_auc(labels, scores) == 1.0
    assert math.isnan(mtl_auc(labels[:, 1:], scores[:, 1:]))


def test_mtl_auc_refuses_shapes_that_differ():
    with pytest.raises(DataError, match=r"wanted \(n, T\) of both"):
        mtl_auc(np.zeros((3, 2)), np.zeros((2, 3)))


def test_mean_defined_leaves_out_nan():
    assert mean_defined([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(mean_defined([math.nan]))
    assert math.isnan(mean_defined([]))


def test_a_large_log_agrees_with_scikit_learn_user_by_user():
    rng = np.random.default_rng(7)
    n = 200_000
    users, labels = rng.integers(0, 50, n), rng.random(n) < 0.2
    for scores in (rng.standard_normal(n, dtype=np.float32), rng.standard_normal(n), rng.integers(0, 30, n) / 7):
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
        expected = [roc_auc_score(labels[users == user], scores[users == user]) for user in range(50)]
        np.testing.assert_allclose(user_aucs(labels, scores, users).auc, expected, rtol=1e-12)
