import math

import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import DataError, SpecError
from infnet.evaluation.logged_lists import logged_evidence
from infnet.evaluation.policy_evidence import Earned, Evidence
from infnet.evaluation.predictions import Predictions
from infnet.ranking.policy import Policy
from infnet.ranking.reweighting import CandidateList, Reweighted
from small_dataset import write_dataset

TEXT = "objectives: {first: {formula: p_t0}, third: {formula: watch / 10, weight: 0.5}}\n"
HOUR, DAY = 3_600_000, 86_400_000


def test_intervals_are_those_of_a_bootstrap_over_users():
    rng = np.random.default_rng(0)
    lists = rng.integers(1, 5, 400).astype(np.float64)
    before = rng.gamma(2, 1, (2, 400)) * lists
    after = before * rng.normal([[1.1], [0.9]], 0.3, (2, 400))
    counted = lists * rng.uniform(0.5, 1.5, 400)
    declared, other = Earned(before, lists, lists), Earned(after, counted, counted)
    drawn = rng.integers(0, 400, (4000, 400))
    for index, found in enumerate(other.beside(declared)):
        means = (after[index][drawn].sum(axis=1) / counted[drawn].sum(axis=1)) / (
            before[index][drawn].sum(axis=1) / lists[drawn].sum(axis=1)
        )
        low, high = np.quantile(means - 1, [0.025, 0.975])
        assert found.value == pytest.approx(after[index].sum() / counted.sum() / before[index].sum() * lists.sum() - 1)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_beside_itself_nothing_changes_and_beside_nothing_nothing_can_be_said():
    earned = Earned(np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([2.0, 1.0]), np.ones(2))
    same, nothing = earned.beside(earned)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))
    assert math.isnan(nothing.value)
    assert np.isnan(Earned(np.zeros((1, 2)), np.zeros(2), np.zeros(2)).means()).all()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Rows of a user lie an hour apart, with a night after every eighth."""
    made = write_dataset(tmp_path_factory.mktemp("lists"), {"test": 300})
    rows = np.arange(300, dtype=np.int64)
    np.save(made.path / "test" / "time.npy", rows % 8 * HOUR // 4 + rows // 8 * DAY)
    return type(made).open(made.path)


@pytest.fixture(scope="module")
def found(dataset):
    rng, rows = np.random.default_rng(1), dataset.rows("test")
    scores = np.concatenate([rng.random((300, 2)), 10 * rng.random((300, 1))], axis=1)
    return Predictions(("t0", "t1", "watch"), ("binary", "binary", "regression"), rows.labels, scores, rows.user)


def policy(dataset, text=TEXT):
    return Policy.parse(text, dataset.layout.tasks)


@pytest.mark.parametrize("discounted", [False, True])
def test_what_the_first_positions_earn_is_the_sum_written_out(dataset, found, discounted):
    evidence = logged_evidence(
        policy(dataset), dataset, "test", found, ["t0", "t1"], top=3, discounted=discounted, kind="day"
    )
    earned = evidence.earned(np.array([1.0, 0.2]))
    rows, sums, counts = dataset.rows("test"), {}, {}
    keys = [*zip(rows.user.tolist(), (rows.time // DAY).tolist(), strict=True)]
    for key in dict.fromkeys(keys):
        mine = [row for row in range(300) if keys[row] == key]
        mine.sort(key=lambda row: -(found.scores[row, 0] + 0.2 * found.scores[row, 2] / 10))
        gain = sum(
            np.nan_to_num(rows.labels[row, :2]) / (math.log2(place + 1) if discounted else 1)
            for place, row in enumerate(mine[:3], start=1)
        )
        sums[key[0]] = sums.get(key[0], 0) + gain
        counts[key[0]] = counts.get(key[0], 0) + 1
    np.testing.assert_allclose(earned.rewards.T, [sums[user] for user in sorted(sums)])
    assert earned.counted.tolist() == [counts[user] for user in sorted(counts)]


def test_a_session_ends_with_a_pause(dataset, found):
    made = logged_evidence(policy(dataset), dataset, "test", found, ["t0", "t1"], top=3, kind="session")
    rows = dataset.rows("test")
    pauses = (np.diff(rows.user) != 0) | (np.diff(rows.time) > HOUR / 2)
    assert made.lists.starts.tolist() == [0, *(np.flatnonzero(pauses) + 1), 300]


def test_constraints_compare_categories_as_the_model_reads_them(dataset, found):
    field = next(f.name for f in dataset.layout.side("item") if f.storage == "id")
    text = TEXT + f"constraints: [{{at_most: 1, per: {field}}}]\n"
    evidence = logged_evidence(policy(dataset, text), dataset, "test", found, ["t0", "t1"], top=8, discounted=True)
    positions, column = evidence.lists.positions(np.array([1.0, 0.5])), dataset.layout.id_columns("item")[field].start
    values = dataset.items.ids[dataset.rows("test").item, column]
    free = logged_evidence(policy(dataset), dataset, "test", found, ["t0", "t1"], top=8, discounted=True)
    assert (positions != free.lists.positions(np.array([1.0, 0.5]))).any()
    reserved = [row for each in dataset.layout.vocabularies for row in (each.first, each.first + 1)]
    for start, end in zip(evidence.lists.starts[:-1], evidence.lists.starts[1:], strict=True):
        order = np.argsort(positions[start:end])
        mine = [value for value in values[start:end][order].tolist() if value not in reserved]
        assert len(set(mine[: len(set(mine))])) == len(set(mine))  # all different ones before any again


@pytest.mark.parametrize(
    ("text", "rewards", "options", "error", "message"),
    [
        (TEXT, ["t0", "t9"], {}, SpecError, "'t9' is no label of .*; known are: t0, t1, watch"),
        (TEXT, ["t0", "t1"], {"top": 8}, DataError, "no list has more than . rows, .* give a smaller --top, or --disc"),
        (
            TEXT.replace("watch / 10", "bid") + "inputs: {bid: {item: price}}",
            ["t0", "t1"],
            {},
            SpecError,
            "reads the item field 'price', and logged rows have predictions alone; judge by served pages",
        ),
        (TEXT + "constraints: [{ad_load: {at_most: 1, per: 5}}]", ["t0", "t1"], {}, SpecError, "item field 'is_ad'"),
        (
            TEXT + "constraints: [{spacing: 2, per: topic}]",
            ["t0", "t1"],
            {},
            SpecError,
            "compares items by 'topic', which is no category of items in",
        ),
        (
            TEXT + "inputs: {new: {request: is_new}}\nsegments: [{when: new > 0, weights: {first: 2}}]",
            ["t0", "t1"],
            {},
            SpecError,
            "reads the request field 'is_new'",
        ),
    ],
)
def test_what_logged_rows_cannot_say_is_told(dataset, found, text, rewards, options, error, message):
    with pytest.raises(error, match=message):
        logged_evidence(policy(dataset, text), dataset, "test", found, rewards, **options)


def test_predictions_that_are_no_numbers_are_told(dataset, found):
    scores = found.scores.copy()
    scores[7, 1] = np.nan
    broken = Predictions(found.tasks, found.kinds, found.labels, scores, found.users)
    with pytest.raises(DataError, match="predictions are no finite numbers"):
        logged_evidence(policy(dataset), dataset, "test", broken, ["t0", "t1"], top=2)


@pytest.mark.parametrize(
    ("rewards", "num_users", "message"),
    [
        (np.zeros(12), 6, "'click' is 0 throughout: all of it; give an objective that was earned"),
        (np.full(12, np.inf), 6, "'click' of item 0 is no finite number"),
        (np.ones(12), 3, "there are 3 users, wanted at least 4"),
    ],
)
def test_evidence_that_is_none_is_told(rewards, num_users, message):
    tasks = [TaskLayout(name="click", kind="binary", loss="bce")]
    lists = Reweighted(
        Policy.parse("objectives: {click: {formula: p_click}}", tasks), [CandidateList({"click": np.ones(2)})] * 6
    )
    with pytest.raises(DataError, match=message):
        Evidence("all of it", lists, np.arange(6) % num_users, {"click": rewards}, lambda p: p >= 0, is_sampled=False)
