import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.data.layout import TaskLayout
from infnet.errors import DataError, SpecError
from infnet.ranking.combine import combine, normalise
from infnet.ranking.policy import Policy

TASKS = (
    TaskLayout(name="click", kind="binary", loss="bce"),
    TaskLayout(name="order", kind="binary", loss="bce"),
    TaskLayout(name="watch_time", kind="regression", loss="mse"),
)
TEXT = """
name: home
inputs:
  bid: {item: bid, unit: USD, range: [0, 100]}
  pctr: {task: click}
  is_new_user: {request: is_new, range: [0, 1]}
objectives:
  revenue:    {formula: "bid * pctr * p_order", weight: 2}
  experience: {formula: "0.4 * p_click + 0.6 * log1p(watch_time)", weight: 0.3}
segments:
  - {when: "is_new_user > 0.5", weights: {revenue: 0.5}}
"""
PREDICTIONS = {
    "click": np.array([0.1, 0.4, 0.9]),
    "order": np.array([0.5, 0.2, 0.9]),
    "watch_time": np.array([10.0, 3.0, 0.0]),
}


def parse(text):
    return Policy.parse(text, TASKS, "policy.yaml")


def changed(old, new):
    assert old in TEXT
    return TEXT.replace(old, new)


def test_a_score_is_the_weighted_sum_of_the_formulas():
    scored = parse(TEXT).score(PREDICTIONS, {"bid": [1, None, 7.5]})
    click, order, watch = PREDICTIONS.values()
    revenue = 2 * np.array([1, 0, 7.5]) * click * order
    experience = 0.3 * (0.4 * click + 0.6 * np.log1p(watch))
    assert scored.scores == pytest.approx(revenue + experience)
    assert scored.parts["revenue"] == pytest.approx(revenue)
    assert scored.parts["experience"] == pytest.approx(experience)


def test_a_segment_has_its_own_weights():
    policy = parse(TEXT)
    items = {"bid": [1, 2, 3]}
    usual, new = policy.score(PREDICTIONS, items, {"is_new": False}), policy.score(PREDICTIONS, items, {"is_new": True})
    assert new.parts["revenue"] == pytest.approx(usual.parts["revenue"] / 4)
    assert new.parts["experience"] == pytest.approx(usual.parts["experience"])


def test_what_it_reads_is_known():
    policy = parse(TEXT)
    assert (policy.item_fields, policy.request_fields) == (("bid",), ("is_new",))
    assert policy.version != parse(changed("weight: 2", "weight: 3")).version
    assert policy.version == parse("# a remark\n" + TEXT).version


VALUE = st.floats(allow_nan=False) | st.integers() | st.none() | st.booleans()


@given(
    bids=st.lists(VALUE, min_size=3, max_size=3),
    is_new=VALUE,
    predictions=st.lists(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3), min_size=3, max_size=3),
    how=st.sampled_from(["weighted_sum", "product_of_powers", "rank_fusion"]),
    scale=st.sampled_from(["none", "minmax", "zscore", "rank"]),
)
def test_scores_are_numbers_whatever_comes_and_the_parts_make_them(bids, is_new, predictions, how, scale):
    scale = scale if how == "weighted_sum" else "none"
    policy = parse(f"combine: {how}\nnormalise: {scale}\n{TEXT}")
    scored = policy.score(
        dict(zip(PREDICTIONS, np.array(predictions).T, strict=True)), {"bid": bids}, {"is_new": is_new}
    )
    assert np.isfinite(scored.scores).all()
    together = np.prod if how == "product_of_powers" else np.sum
    assert together([*scored.parts.values()], axis=0) == pytest.approx(scored.scores)


@pytest.mark.parametrize("value", ["7", [1], {}, float("nan")])
def test_a_field_that_is_no_number_is_named(value):
    with pytest.raises(DataError, match=r"field 'bid' is .*, wanted a number; send one, or leave it out"):
        parse(TEXT).score(PREDICTIONS, {"bid": [1, value, 2]})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (changed("p_order", "p_odrer"), "policy.yaml, line 8: objectives.revenue.formula: 'p_odrer' is neither a"),
        (changed("p_order", "p_odrer"), "did you mean 'p_order'?"),
        (changed("task: click", "task: like"), "line 5: inputs.pctr: the model predicts no task 'like'; did you mean"),
        (changed("weight: 2", "weight: .nan"), "line 8: objectives.revenue.weight: Input should be a finite number"),
        (changed("weight: 2", "wieght: 2"), "unknown setting 'objectives.revenue.wieght'; did you mean 'weight'?"),
        (changed("item: bid", "item: bid, task: click"), "inputs.bid: an input has exactly one of task, item and"),
        (changed("[0, 100]", "[100, 0]"), "inputs.bid: range [100, 0] is upside down"),
        (changed("bid * pctr", "1 / pctr"), "line 8: objectives.revenue.formula: '1 / pctr * p_order' may divide by"),
        (changed("is_new_user > 0.5", "p_click > 0.5"), "segments.0.when: 'p_click' is neither"),
        (changed("weights: {revenue", "weights: {revenu"), "segments[0] weighs 'revenu', which is no objective"),
        (changed("weight: 2", "weight: 1e200"), "may overflow; wanted a smaller one"),
        (changed("weight: 2", "weight: 0").replace("weight: 0.3", "weight: 0"), "every weight is 0"),
        ("combine: rank_fusion\n" + changed("weight: 2", "weight: -1"), "rank_fusion wants a weight above 0"),
        ("combine: product_of_powers\n" + changed("bid * pctr", "(pctr - 1)"), "product_of_powers wants values from 0"),
        ("combine: product_of_powers\n" + changed("weight: 2", "weight: 1000"), "is a power that may overflow"),
        ("combine: rank_fusion\nnormalise: rank\n" + TEXT, "normalise goes with weighted_sum"),
        ("objectives: {}", "objectives: Dictionary should have at least 1 item"),
        ("[1, 2]", "line 1: a policy is a mapping with objectives"),
        ("objectives: {a: {formula: 1}}", "objectives.a.formula: Input should be a valid string"),
        ("{", "not valid YAML"),
        (changed("name: home", "name: home\nname: away"), "line 3: 'name' stands in line 2 already; keep one"),
    ],
)
def test_what_is_no_policy_is_told_in_one_line(text, complaint):
    with pytest.raises(SpecError) as error:
        parse(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        Policy.load(tmp_path / "none.yaml", TASKS)


@given(values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=8))
def test_normalised_values_keep_their_order_and_no_unit(values):
    given = np.array(values, dtype=np.float64)
    for how in ("minmax", "zscore", "rank"):
        found = normalise(given, how)
        assert normalise(1000 * given + 5, how) == pytest.approx(found, abs=1e-6)
        assert (np.diff(found[np.argsort(given)]) >= 0).all()
    assert normalise(given, "rank").tolist() == pytest.approx(
        [
            0.0 if len({*values}) == 1 else (sum(v < x for v in values) + (values.count(x) - 1) / 2) / (len(values) - 1)
            for x in values
        ]
    )


def test_rank_fusion_is_its_definition():
    values = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]])
    scores, _ = combine(values, np.array([1.0, 0.5]), "rank_fusion")
    assert scores == pytest.approx([1 / 61 + 0.5 / 62.5, 1 / 63 + 0.5 / 62.5, 1 / 62 + 0.5 / 61])


def test_a_product_of_powers_is_one():
    scores, _ = combine(np.array([[3.0, 1.0], [2.0, 5.0]]), np.array([2.0, -1.0]), "product_of_powers")
    assert scores == pytest.approx([9 / 2, 1 / 5])
