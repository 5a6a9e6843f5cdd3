import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet.ranking.rerank.spec import Diversity, Floor
from ranking.rerank.page_oracle import adjusted, feasible_after, ordered, shown_by_relevance
from ranking.rerank.small_pages import CONSTRAINTS, FRESH, page, reranker

SMALL = st.integers(1, 3)
FIELDS = st.sampled_from(["author", "topic", "tags", "missing"])
FORMS = st.one_of(
    st.builds(lambda k, per, more: {"at_most": k, "per": per, "within": k + more}, SMALL, FIELDS, SMALL),
    st.builds(lambda k, per: {"at_most": k, "per": per}, SMALL, FIELDS),
    st.builds(lambda g, per: {"spacing": g, "per": per}, SMALL, FIELDS),
    st.builds(
        lambda k, more, first: {"ad_load": {"at_most": k, "per": max(k, 1) + more, "first": first}},
        st.integers(0, 2), st.integers(0, 3), SMALL,
    ),
    st.builds(lambda k, more: {"at_least": k, "within": k + more, "where": FRESH}, SMALL, st.integers(0, 4)),
    st.builds(lambda x: {"floor": "p_like", "at_least": x / 4}, st.integers(0, 2)),
)  # fmt: skip
ITEM = st.fixed_dictionaries(
    {
        "score": st.integers(0, 6),
        "age": st.sampled_from([1, 50]),
        "p_like": st.integers(0, 4).map(lambda quarter: quarter / 4),
        "author": st.none() | st.sampled_from(["a", "b", "c"]),
        "topic": st.none() | st.integers(0, 2),
        "tags": st.none() | st.lists(st.sampled_from(["x", "y", "z", None]), max_size=4),
        "is_ad": st.sampled_from([None, False, True, 0, 1]),
        "vector": st.lists(st.integers(-2, 2), min_size=3, max_size=3),
    }
)
DIVERSITY = st.none() | st.fixed_dictionaries(
    {
        "method": st.just("mmr"),
        "strength": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        "by": st.lists(FIELDS, min_size=1, max_size=3, unique=True),
        "window": st.none() | SMALL,
    }
)


def split(rows):
    items = {name: [row[name] for row in rows] for name in ("author", "topic", "tags", "is_ad")}
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in ("age", "p_like")}
    return [row["score"] for row in rows], columns, items


@given(
    forms=st.lists(FORMS, max_size=4), diversity=DIVERSITY, rows=st.lists(ITEM, max_size=9), limit=st.integers(0, 11)
)
def test_a_page_is_its_definition(forms, diversity, rows, limit):
    scores, columns, items = split(rows)
    made = reranker(*forms, diversity=diversity)
    found = page(made, scores, items, limit, columns)
    constraints = CONSTRAINTS.validate_python(forms)
    wanted, gave_up = ordered(
        constraints,
        diversity and Diversity.model_validate(diversity),
        scores,
        columns,
        items,
        limit,
        wanted={FRESH: (columns["age"] < 24).tolist()},
    )
    assert found.places.tolist() == wanted
    labels = [str(each) for each in constraints if not isinstance(each, Floor)]
    told = {}
    for position, number in gave_up:
        told.setdefault(number, set()).add(position)
    assert [text.split(" at position")[0] for text in found.gave_up] == [labels[number] for number in sorted(told)]
    for text, number in zip(found.gave_up, sorted(told), strict=True):
        assert positions(text) == told[number]


def positions(text):
    told = set()
    for part in text.rsplit("position", 1)[1].removeprefix("s").split(","):
        first, _, last = part.strip().partition("-")
        told |= set(range(int(first), int(last or first) + 1))
    return told


@given(
    forms=st.lists(FORMS, max_size=4), diversity=DIVERSITY, rows=st.lists(ITEM, max_size=9), limit=st.integers(0, 11)
)
def test_whoever_stands_elsewhere_than_by_score_knows_why_and_a_limit_only_cuts_off(forms, diversity, rows, limit):
    scores, columns, items = split(rows)
    made = reranker(*forms, diversity=diversity)
    whole, cut = (page(made, scores, items, many, columns) for many in (99, limit))
    assert cut.places.tolist() == whole.places.tolist()[:limit]
    assert cut.notes == whole.notes[:limit]
    by_score = sorted(whole.places.tolist(), key=lambda place: (-scores[place], place))
    for position, (place, notes) in enumerate(zip(whole.places.tolist(), whole.notes, strict=True)):
        moved = position - by_score.index(place)
        assert bool(notes) == bool(moved)
        assert all(note.startswith("held back by " if moved > 0 else "lifted by ") for note in notes)


@given(
    rows=st.lists(ITEM, min_size=1, max_size=9),
    strength=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    method=st.sampled_from(["mmr", "dpp"]),
    forms=st.lists(FORMS, max_size=2),
    window=st.none() | SMALL,
)
def test_vectors_make_a_page_that_is_best_at_each_position(rows, strength, method, forms, window):
    """Sums differ in their last digits, so the chosen one need only be as good as the best but for these."""
    scores, columns, items = split(rows)
    vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
    diversity = Diversity.model_validate({"method": method, "strength": strength, "window": window})
    found = page(reranker(*forms, diversity=diversity.model_dump()), scores, items, 9, columns, vectors)
    assert_greedy(found.places.tolist(), CONSTRAINTS.validate_python(forms), diversity, scores, columns, items, vectors)


@given(
    rows=st.lists(ITEM, min_size=1, max_size=9),
    strength=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    by=st.lists(FIELDS, min_size=1, max_size=3, unique=True),
    window=st.none() | SMALL,
)
def test_dpp_goes_on_by_relevance_where_fields_are_exhausted(rows, strength, by, window):
    scores, columns, items = split(rows)
    diversity = Diversity.model_validate({"method": "dpp", "strength": strength, "by": by, "window": window})
    found = page(reranker(diversity=diversity.model_dump()), scores, items, 9, columns)
    assert_greedy(found.places.tolist(), (), diversity, scores, columns, items, None)


def assert_greedy(places, constraints, diversity, scores, columns, items, vectors):
    shown, relevance = shown_by_relevance(constraints, scores, columns)
    rules = [each for each in constraints if not isinstance(each, Floor)]
    assert len(places) == len(shown)
    for position, chosen in enumerate(places):
        before = places[:position]
        able, _ = feasible_after(rules, before, shown, items, {FRESH: (columns["age"] < 24).tolist()})
        worth = {s: adjusted(diversity, relevance[s], s, before, items, vectors) for s in able}
        assert worth[chosen] == pytest.approx(max(worth.values()), abs=1e-5)
