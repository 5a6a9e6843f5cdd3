import concurrent.futures

import numpy as np
import pytest

from infnet.errors import DataError
from ranking.rerank.small_pages import FRESH, page, reranker


def test_nothing_makes_an_empty_page():
    made = reranker({"at_most": 1, "per": "author"}, diversity={"method": "mmr", "strength": 0.5})
    for found in (page(made, []), page(made, [1.0, 2.0], limit=0, vectors=np.ones((2, 3)))):
        assert (found.places.tolist(), found.notes, found.gave_up) == ([], (), ())


def test_a_page_of_items_below_the_floor_is_empty():
    made = reranker({"floor": "p_like", "at_least": 0.5}, {"at_least": 1, "within": 1, "where": FRESH})
    columns = {"p_like": np.array([0.1, 0.49]), "age": np.array([1.0, 1.0])}
    found = page(made, [1, 2], columns=columns)
    assert (found.places.tolist(), found.num_shown) == ([], 0)


def test_a_floor_is_never_given_up_and_relevance_is_scaled_without_those_below():
    made = reranker({"floor": "p_like", "at_least": 0.5}, diversity={"method": "mmr", "strength": 0.5, "by": ["topic"]})
    columns = {"p_like": np.array([0.0, 1, 1, 1])}
    # With 1000 in the scale, 3 and 1 would be nearly the same and the topic would decide.
    found = page(made, [1000, 3, 2.5, 1], {"topic": ["a", "b", "b", "c"]}, columns=columns)
    assert found.places.tolist() == [1, 3, 2]


def test_without_anything_declared_scores_decide_and_ties_keep_the_order():
    found = page(reranker(), [1, 3, 3, 2], limit=3)
    assert found.places.tolist() == [1, 2, 3]
    assert found.notes == ((), (), ())


def test_reasons_name_the_constraint():
    made = reranker({"at_most": 1, "per": "author", "within": 2}, {"at_least": 1, "within": 3, "where": FRESH})
    columns = {"age": np.array([50, 50, 50, 1.0])}
    found = page(made, [9, 8, 7, 1], {"author": ["a", "a", "b", "c"]}, columns=columns)
    assert found.places.tolist() == [0, 2, 3, 1]
    assert found.notes == (
        (),
        ("lifted by at_most 1 per author within 2",),
        (f"lifted by at_least 1 within 3 where {FRESH}",),
        ("held back by at_most 1 per author within 2", f"held back by at_least 1 within 3 where {FRESH}"),
    )


def test_the_last_constraint_is_given_up_first_and_only_where_it_must_be():
    tight = ({"spacing": 5, "per": "author"}, {"spacing": 5, "per": "topic"})
    items = {"author": ["a", "a", "b"], "topic": ["x", "y", "x"]}
    assert page(reranker(*tight), [3, 2, 1], items).places.tolist() == [0, 2, 1]
    assert page(reranker(*tight[::-1]), [3, 2, 1], items).places.tolist() == [0, 1, 2]
    found = page(reranker(*tight), [3, 2, 1], items)
    assert found.gave_up == ("spacing 5 per author at position 3", "spacing 5 per topic at position 2")


def test_a_quota_takes_the_best_of_the_wanted_as_late_as_it_can():
    made = reranker({"at_least": 2, "within": 4, "where": FRESH})
    columns = {"age": np.array([50, 50, 50, 50, 50, 1, 1, 1.0])}
    found = page(made, [9, 8, 7, 6, 5, 1, 3, 2], columns=columns)
    # The second block lacks two until one is placed; then nobody who is wanted is left.
    assert found.places.tolist() == [0, 1, 6, 7, 2, 3, 5, 4]
    assert found.gave_up == ()


def test_inputs_of_the_request_can_be_constrained_too():
    made = reranker({"floor": "hour", "at_least": 8}, {"at_least": 1, "within": 1, "where": "hour > 12"})
    for hour, shown in ((7, 0), (9, 2), (13, 2)):
        assert len(page(made, [1, 2], columns={"hour": np.array(float(hour))}).places) == shown


def test_an_ad_may_be_told_by_another_field():
    found = page(reranker({"ad_load": {"at_most": 0, "per": 1}}, ad_field="sold"), [2, 1], {"sold": [1, 0]}, limit=1)
    assert found.places.tolist() == [1]


def test_what_it_reads_is_known():
    made = reranker(
        {"at_most": 1, "per": "author"},
        {"ad_load": {"at_most": 1, "per": 5}},
        {"at_least": 1, "within": 5, "where": "age < 24"},
        {"floor": "p_like", "at_least": 0.1},
        diversity={"method": "dpp", "strength": 0.1, "by": ["author", "tags"]},
    )
    assert (made.item_fields, made.names, made.wants_vectors) == (("author", "is_ad", "tags"), ("age", "p_like"), False)
    assert reranker(diversity={"method": "mmr", "strength": 0.1}).wants_vectors


@pytest.mark.parametrize("value", [{"a": 1}, [["x"]], [{}]])
def test_a_value_that_cannot_be_compared_is_named(value):
    made = reranker({"at_most": 1, "per": "author"})
    with pytest.raises(DataError, match=r"field 'author' of a candidate is [\[{].*, wanted a text, a number or a list"):
        page(made, [1, 2], {"author": ["x", value]})


def test_missing_vectors_are_told():
    with pytest.raises(DataError, match="diversity compares vectors of the items, and there are none"):
        page(reranker(diversity={"method": "mmr", "strength": 0.1}), [1, 2])


def test_threads_do_not_disturb_each_other():
    made = reranker(
        {"at_most": 1, "per": "author", "within": 5}, diversity={"method": "mmr", "strength": 0.5, "by": ["author"]}
    )
    rng = np.random.default_rng(0)
    cases = [(rng.random(50), {"author": rng.integers(0, 9, 50).tolist()}) for _ in range(40)]
    alone = [page(made, scores, items).places.tolist() for scores, items in cases]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = threads.map(lambda case: page(made, *case).places.tolist(), cases)
        assert list(together) == alone
