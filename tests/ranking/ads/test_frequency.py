from hypothesis import given
from hypothesis import strategies as st

from infnet.ranking.ads.frequency import allowed, keys_of
from infnet.ranking.ads.spec import FrequencyCap

CAMPAIGN = FrequencyCap(at_most=2, per="campaign_id", hours=24)
TOPIC = FrequencyCap(at_most=1, per="topics", hours=1)
ITEMS = {"campaign_id": ["a", "b", None, "a", "c"], "topics": [["x"], ["y", "z"], None, [], ["z", None]]}


def test_what_was_seen_often_enough_is_not_allowed():
    assert allowed([CAMPAIGN], [{"a": 2, "b": 1}], ITEMS, 5).tolist() == [False, True, True, False, True]


def test_all_caps_have_to_be_kept_and_a_list_is_capped_by_each_value():
    found = allowed([CAMPAIGN, TOPIC], [{"a": 3}, {"z": 1}], ITEMS, 5)
    assert found.tolist() == [False, False, True, False, False]


def test_what_is_not_counted_or_has_no_field_is_allowed():
    other = FrequencyCap(at_most=1, per="advertiser", hours=1)
    assert allowed([CAMPAIGN, other], [{}, {"a": 9}], ITEMS, 5).all()
    assert allowed([], [], {}, 3).tolist() == [True] * 3


def test_keys_to_be_counted_are_known():
    assert keys_of(CAMPAIGN, ITEMS) == ["a", "b", "c"]
    assert keys_of(TOPIC, ITEMS) == ["x", "y", "z"]
    assert keys_of(FrequencyCap(at_most=1, per="advertiser", hours=1), ITEMS) == []
    assert str(CAMPAIGN) == "at_most 2 per campaign_id in 24 h"


KEY = st.sampled_from("abc")


@given(
    rows=st.lists(st.none() | KEY | st.lists(KEY, max_size=3), max_size=6),
    counts=st.dictionaries(KEY, st.integers(0, 4)),
    at_most=st.integers(1, 3),
)
def test_it_is_its_definition(rows, counts, at_most):
    cap = FrequencyCap(at_most=at_most, per="tags", hours=2)
    keys = [row if isinstance(row, list) else [row] for row in rows]
    wanted = [all(counts.get(key, 0) < at_most for key in each) for each in keys]
    assert allowed([cap], [counts], {"tags": rows}, len(rows)).tolist() == wanted
