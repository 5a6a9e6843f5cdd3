import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from infnet.ranking.ads.frequency import keys_of, within_caps
from infnet.ranking.ads.spec import FrequencyCap

CAMPAIGN = FrequencyCap(at_most=2, per="campaign_id", hours=24)
TOPIC = FrequencyCap(at_most=1, per="topics", hours=1)
ITEMS = {"campaign_id": ["a", "b", None, "a", "c"], "topics": [["x"], ["y", "z"], None, [], ["z", None]]}


def allowed(caps, counts, items, order):
    return within_caps(caps, counts, items, np.array(order, dtype=np.intp)).tolist()


def test_what_was_seen_often_enough_is_not_allowed():
    assert allowed([CAMPAIGN], [{"a": 2, "b": 1}], ITEMS, range(5)) == [False, True, True, False, True]


def test_a_page_holds_no_more_than_may_still_be_seen_and_the_best_ones():
    items = {"campaign_id": ["a"] * 4}
    assert allowed([CAMPAIGN], [{"a": 1}], items, [2, 0, 3, 1]) == [True, False, False, False]
    assert allowed([CAMPAIGN], [{}], items, [2, 0, 3, 1]) == [True, True, False, False]


def test_all_caps_have_to_be_kept_and_a_list_is_capped_by_each_value():
    found = allowed([CAMPAIGN, TOPIC], [{"a": 3}, {"z": 1}], ITEMS, range(5))
    assert found == [False, False, True, False, False]


def test_what_is_not_counted_or_has_no_field_is_allowed():
    other = FrequencyCap(at_most=1, per="advertiser", hours=1)
    assert all(allowed([CAMPAIGN, other], [{}, {"a": 9}], ITEMS, range(5)))
    assert allowed([], [], {}, [0, 1, 2]) == [True] * 3


def test_keys_are_counted_as_texts():
    assert keys_of("a") == ["a"]
    assert keys_of(7) == ["7"]
    assert keys_of(["x", None, 3, "x"]) == ["x", "3"]
    assert keys_of(None) == []
    assert allowed([CAMPAIGN], [{"7": 2}], {"campaign_id": [7, "7", 8]}, range(3)) == [False, False, True]
    assert str(CAMPAIGN) == "at_most 2 per campaign_id in 24 h"


KEY = st.sampled_from("abc")


@given(
    rows=st.lists(st.none() | KEY | st.lists(KEY, max_size=3), max_size=6),
    counts=st.dictionaries(KEY, st.integers(0, 4)),
    at_most=st.integers(1, 3),
    data=st.data(),
)
def test_it_is_its_definition(rows, counts, at_most, data):
    cap = FrequencyCap(at_most=at_most, per="tags", hours=2)
    order = data.draw(st.permutations(range(len(rows))))
    seen, wanted = dict(counts), []
    for place in order:
        keys = {*(rows[place] if isinstance(rows[place], list) else [rows[place]])} - {None}
        wanted.append(all(seen.get(key, 0) < at_most for key in keys))
        if wanted[-1]:
            for key in keys:
                seen[key] = seen.get(key, 0) + 1
    assert allowed([cap], [counts], {"tags": rows}, order) == wanted
