"""Pages of few candidates, and what may be declared about them."""

import numpy as np
from pydantic import TypeAdapter

from infnet.ranking.interval import Interval
from infnet.ranking.rerank.inputs import Inputs
from infnet.ranking.rerank.page import Reranker
from infnet.ranking.rerank.spec import Constraint, Diversity

CONSTRAINTS = TypeAdapter(tuple[Constraint, ...])
INPUTS = Inputs({"age": Interval(0, 100), "p_like": Interval(0, 1), "hour": Interval(0, 24)})
FRESH = "age < 24"


def reranker(*constraints, diversity=None, **settings):
    declared = CONSTRAINTS.validate_python(constraints)
    return Reranker(declared, diversity and Diversity.model_validate(diversity), INPUTS, **settings)


def page(maker, scores, items=None, limit=99, columns=None, vectors=None):
    return maker.order(np.array(scores, dtype=np.float64), columns or {}, items or {}, limit, vectors)
