"""What re-ranking a page takes, on one core; prints a Markdown table.

    python benchmarks/reranking.py --candidates 500 --limits 20 50 500

Candidates have an author (of 100), a topic (of 20), up to four tags (of 40), an age, vectors of 64 numbers, and one of
five is an ad. The pages of the first cases hold two caps, an ad load and a quota; the others name what they add or are
alone. All cases take turns, with new candidates each time; making the candidates does not count. Notes, why items stand
where they stand, are worked out only where somebody asks for them, and so count for themselves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from infnet.ranking.interval import Interval
from infnet.ranking.rerank.inputs import Inputs
from infnet.ranking.rerank.page import Reranker
from infnet.ranking.rerank.spec import Constraint, Diversity
from one_core import use_one_core

CAPS = (
    {"at_most": 2, "per": "author_id", "within": 10},
    {"at_most": 3, "per": "topic", "within": 10},
    {"ad_load": {"at_most": 1, "per": 5, "first": 3}},
    {"at_least": 2, "within": 10, "where": "age_hours < 24"},
)
MMR = {"method": "mmr", "strength": 0.3, "by": ["author_id", "topic"]}
CASES: Mapping[str, tuple[tuple[dict[str, Any], ...], dict[str, Any] | None]] = {
    "constraints": (CAPS, None),
    "constraints, mmr by fields": (CAPS, MMR),
    "constraints, mmr by vectors": (CAPS, {"method": "mmr", "strength": 0.3}),
    "constraints, dpp by vectors": (CAPS, {"method": "dpp", "strength": 0.3}),
    "constraints and a cap per tag, mmr by tags": (
        ({"at_most": 4, "per": "tags", "within": 10}, *CAPS),
        {"method": "mmr", "strength": 0.3, "by": ["tags"]},
    ),
    "mmr by fields alone": ((), MMR),
}


@dataclass(frozen=True)
class Candidates:
    """What one request brings."""

    scores: NDArray[np.float64]
    columns: dict[str, NDArray[np.float64]]
    items: dict[str, list[Any]]
    vectors: NDArray[np.float32]


def candidates(rng: np.random.Generator, num: int) -> Candidates:
    """Random ones; few are fresh, and the fresh ones have no worse scores."""
    tags = [[f"tag{tag}" for tag in rng.integers(0, 40, rng.integers(0, 5))] for _ in range(num)]
    items = {
        "author_id": [f"author{number}" for number in rng.integers(0, 100, num)],
        "topic": [f"topic{number}" for number in rng.integers(0, 20, num)],
        "tags": tags,
        "is_ad": (rng.random(num) < 0.2).tolist(),
    }
    vectors = rng.standard_normal((num, 64)).astype(np.float32)
    return Candidates(rng.random(num), {"age_hours": rng.uniform(0, 1000, num)}, items, vectors)


def reranker(constraints: tuple[dict[str, Any], ...], diversity: dict[str, Any] | None) -> Reranker:
    """Of one case."""
    declared = TypeAdapter(tuple[Constraint, ...]).validate_python(constraints)
    return Reranker(
        declared,
        None if diversity is None else Diversity.model_validate(diversity),
        Inputs({"age_hours": Interval(0, 1e6)}),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--limits", type=int, nargs="+", default=[20, 50, 500], help="positions of a page")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    use_one_core()
    rng = np.random.default_rng(options.seed)
    rerankers = {name: reranker(*case) for name, case in CASES.items()}
    taken_ms: dict[tuple[str, int], list[tuple[float, float]]] = {
        (name, limit): [] for limit in options.limits for name in CASES
    }
    for run in range(options.runs + 1):
        given = candidates(rng, options.candidates)
        for (name, limit), taken in taken_ms.items():
            started = time.perf_counter()
            page = rerankers[name].order(given.scores, given.columns, given.items, limit, given.vectors)
            ordered = time.perf_counter()
            assert len(page.notes) == limit
            if run:  # the first one warms up
                taken.append((1000 * (ordered - started), 1000 * (time.perf_counter() - ordered)))
    print(f"{options.candidates} candidates, {options.runs} runs, one core\n")
    print("| case | positions | median ms | p99 ms | its notes, median ms |")
    print("|---|---:|---:|---:|---:|")
    for (name, limit), taken in taken_ms.items():
        median, notes = np.median(taken, axis=0)
        print(f"| {name} | {limit} | {median:.2f} | {np.quantile(taken, 0.99, axis=0)[0]:.2f} | {notes:.2f} |")


if __name__ == "__main__":
    main()
