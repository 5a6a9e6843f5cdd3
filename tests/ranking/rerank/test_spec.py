import re

import numpy as np
import pytest

from infnet.data.layout import TaskLayout
from infnet.errors import SpecError
from infnet.ranking.policy import Policy

TASKS = (
    TaskLayout(name="click", kind="binary", loss="bce"),
    TaskLayout(name="long_view", kind="binary", loss="bce"),
)
TEXT = """objectives: {click: {formula: p_click}}
inputs:
  age_hours: {item: age_hours, range: [0, 10000], default: 10000}
constraints:
  - {at_most: 2, per: author_id, within: 10}
  - {spacing: 3, per: topic}
  - {ad_load: {at_most: 1, per: 5, first: 3}}
  - {floor: p_long_view, at_least: 0.05}
  - {at_least: 1, within: 10, where: "age_hours < 24"}
diversity: {method: mmr, strength: 0.3, by: [topic, tags], window: 8}
"""
FORMS = "at_most, at_least, spacing, ad_load, floor"


def parse(text):
    return Policy.parse(text, TASKS, "policy.yaml")


def test_a_policy_makes_pages():
    policy = parse(TEXT)
    predictions = {"click": np.array([0.9, 0.8, 0.7, 0.6]), "long_view": np.array([0.5, 0.01, 0.5, 0.5])}
    items = {"topic": ["a", "a", "a", "b"], "is_ad": [True, False, False, False]}
    scored = policy.score(predictions, items)
    found = policy.reranker.order(scored.scores, scored.columns, items, 10)
    assert found.places.tolist() == [3, 2, 0] or found.places.tolist() == [2, 3, 0]
    assert set(policy.item_fields) == {"age_hours", "author_id", "topic", "is_ad", "tags"}
    assert {"p_long_view", "age_hours"} <= policy.inputs.keys()


def test_constraints_say_what_they_are():
    assert [str(each) for each in parse(TEXT).spec.constraints] == [
        "at_most 2 per author_id within 10",
        "spacing 3 per topic",
        "ad_load 1 per 5 from 3 on",
        "floor 0.05 of p_long_view",
        "at_least 1 within 10 where age_hours < 24",
    ]
    assert str(parse(TEXT).spec.diversity) == "mmr 0.3"


def test_ads_name_their_field():
    policy = parse(TEXT + "ads: {field: sold, bid: p_click, click: p_click}\n")
    assert "sold" in policy.item_fields
    assert "is_ad" not in policy.item_fields


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{spacing: 3", "{spaceing: 3", f"6: constraints.1: wanted one of {FORMS}; found spaceing, per"),
        ("{spacing: 3, per: topic}", "{}", f"6: constraints.1: wanted one of {FORMS}; found {{}}"),
        ("{spacing: 3, per: topic}", "topic", f"6: constraints.1: wanted one of {FORMS}; found 'topic'"),
        ("within: 10}", "withn: 10}", "5: unknown setting 'constraints.0.withn'; did you mean 'within'?"),
        ("first: 3", "frist: 3", "7: unknown setting 'constraints.2.ad_load.frist'; did you mean 'first'?"),
        (
            "{spacing: 3, ",
            "{spacing: 3, at_most: 1, ",
            "6: constraints.1: at_most and spacing are several constraints; give each",
        ),
        (", per: topic}", "}", "6: constraints.1.per: Field required"),
        ("spacing: 3", "spacing: 0", "6: constraints.1.spacing: Input should be greater than or equal to 1, found 0"),
        (
            "at_most: 2, per: author_id",
            "at_most: 10, per: author_id",
            "5: constraints.0: at_most 10 within 10 holds nothing back; give a larger within or fewer at_most",
        ),
        (
            "at_least: 1, within: 10",
            "at_least: 11, within: 10",
            "9: constraints.4: at_least 11 of 10 positions cannot be; wanted no more than these",
        ),
        (
            "at_most: 1, per: 5",
            "at_most: 6, per: 5",
            "7: constraints.2.ad_load: at_most 6 of 5 positions limits nothing; wanted no more than these",
        ),
        (
            "floor: p_long_view",
            "floor: p_longview",
            "8: constraints.3.floor: 'p_longview' is neither a prediction nor declared under 'inputs'; did you mean "
            "'p_long_view'?",
        ),
        (
            "at_least: 0.05",
            "at_least: 5",
            "8: constraints.3.at_least: p_long_view is at most 1 and never 5; wanted a lower floor",
        ),
        ("at_least: 0.05", "at_least: .nan", "8: constraints.3.at_least: Input should be a finite number, found nan"),
        (
            "age_hours < 24",
            "age < 24",
            "9: constraints.4.where: 'age' is neither a prediction nor declared under 'inputs'; known are: age_hours, "
            "p_click, p_long_view",
        ),
        ("age_hours < 24", "1 / age_hours", "9: constraints.4.where: '1 / age_hours' may divide by zero"),
        ("age_hours < 24", "age_hours <", "9: constraints.4.where: 'age_hours <' is no formula (invalid syntax)"),
        ("method: mmr", "method: mrm", "10: diversity.method: Input should be 'mmr' or 'dpp', found 'mrm'"),
        ("strength: 0.3", "strength: 3", "10: diversity.strength: Input should be less than or equal to 1, found 3"),
        ("by: [topic, tags]", "by: []", "10: diversity.by: Tuple should have at least 1 item"),
        ("window: 8", "windw: 8", "10: unknown setting 'diversity.windw'; did you mean 'window'?"),
    ],
)
def test_what_is_no_constraint_is_told_in_one_line(old, new, message):
    assert old in TEXT
    with pytest.raises(SpecError) as error:
        parse(TEXT.replace(old, new, 1))
    assert re.match(re.escape(f"policy.yaml, line {message}"), str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
