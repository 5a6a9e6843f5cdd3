import math

import numpy as np
import pytest
import pyversity
from hypothesis import given
from hypothesis import strategies as st

from infnet.ranking.rerank.diversity import diversifier
from infnet.ranking.rerank.fill import fill
from infnet.ranking.rerank.similarity import by_fields, by_vectors
from infnet.ranking.rerank.spec import Diversity
from infnet.ranking.rerank.values import field_values

NUM, WIDTH, LIMIT = 40, 16, 12


def drawn(seed):
    """Scores from the highest down, and vectors that are more or less alike."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(NUM))[::-1].copy()
    return scores, rng.standard_normal((NUM, WIDTH)) + 1.0


def chosen(spec, relevance, vectors):
    page = fill(NUM, LIMIT, [], diversifier(spec, relevance, by_vectors(vectors, spec)))
    return [placed.candidate for placed in page]


def scaled(scores):
    return (scores - scores.min()) / (scores.max() - scores.min())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3, 0.7, 0.95, 1.0])
def test_mmr_chooses_as_pyversity_does(seed, strength):
    scores, vectors = drawn(seed)
    vectors = np.abs(vectors)  # pyversity has negative similarities, where ours are 0
    relevance = scaled(scores)
    theirs = pyversity.mmr(vectors, relevance, k=LIMIT, diversity=strength)
    ours = chosen(Diversity(method="mmr", strength=strength), relevance, vectors)
    assert ours == theirs.indices.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [0.1, 0.3, 0.7, 0.95, 1.0])
def test_dpp_chooses_as_pyversity_does(seed, strength):
    scores, vectors = drawn(seed)
    relevance = scaled(scores)
    # Theirs is q = exp(beta * z-score) with beta = (1 - diversity) * scale; ours q = exp(a * relevance).
    scale = (1 - strength) / (2 * strength) * relevance.std() / 0.5
    # (1 + cosine) / 2 is the product of unit vectors that have one dimension more.
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    longer = np.concatenate([unit, np.ones((NUM, 1))], axis=1) / math.sqrt(2)
    theirs = pyversity.dpp(longer, relevance, k=LIMIT, diversity=0.5, scale=scale)
    ours = chosen(Diversity(method="dpp", strength=strength), relevance, vectors)
    assert ours == theirs.indices.tolist()


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.9])
def test_dpp_takes_what_makes_the_determinant_largest(strength):
    scores, vectors = drawn(9)
    relevance = scaled(scores)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    quality = np.exp((1 - strength) / (2 * strength) * relevance)
    kernel = quality[:, None] * (1 + unit @ unit.T) / 2 * quality
    page = []
    for _ in range(LIMIT):
        others = [one for one in range(NUM) if one not in page]
        page.append(max(others, key=lambda one: np.linalg.slogdet(kernel[np.ix_([*page, one], [*page, one])])[1]))
    assert chosen(Diversity(method="dpp", strength=strength), relevance, vectors) == page


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_a_window_as_long_as_the_page_changes_nothing(method):
    scores, vectors = drawn(3)
    found = [
        chosen(Diversity(method=method, strength=0.4, window=window), scaled(scores), vectors)
        for window in (None, LIMIT, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_more_strength_makes_pages_less_alike(method):
    scores, vectors = drawn(4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = []
    for strength in (0.0, 0.5, 1.0):
        rows = unit[chosen(Diversity(method=method, strength=strength), scaled(scores), vectors)]
        alike.append(np.mean([(rows[:place] @ rows[place]).max() for place in range(1, LIMIT)]))
    assert alike[0] > alike[1] > alike[2]


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_without_strength_scores_decide(method):
    scores, vectors = drawn(5)
    assert chosen(Diversity(method=method, strength=0.0), scaled(scores), vectors) == list(range(LIMIT))


VALUES = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3) | st.none(), max_size=4)


@given(values=st.lists(VALUES, min_size=1, max_size=8), data=st.data())
def test_agreement_is_the_jaccard_similarity_in_any_order(values, data):
    shown = np.array(data.draw(st.permutations(range(len(values)))))
    found = field_values("tags", values, shown)
    sets = [
        {one for one in (value if isinstance(value, list) else [value]) if one is not None}
        for value in (values[place] for place in shown)
    ]
    for one, mine in enumerate(sets):
        wanted = [len(mine & yours) / len(mine | yours) if mine & yours else 0.0 for yours in sets]
        assert found.agreement(one).tolist() == wanted
        similarity = by_fields([found, found])
        assert similarity.scaled(similarity.row(one)).tolist() == wanted


def test_a_vector_of_zeros_is_like_no_other():
    vectors = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    similarity = by_vectors(vectors, Diversity(method="mmr", strength=0.5))
    assert similarity.row(1).tolist() == [0.0, 0.0, 0.0]
    assert similarity.row(0).tolist() == [1.0, 0.0, 1.0]
