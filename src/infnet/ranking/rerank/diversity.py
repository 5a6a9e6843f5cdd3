"""Diversity: an item's relevance against its likeness to the items placed before it.

Relevance is the score, scaled to [0, 1] over the candidates of a page. With strength s in [0, 1] the adjusted score is

- ``mmr`` (Carbonell and Goldstein, SIGIR 1998): (1 - s) * relevance - s * the largest similarity to an item placed.
- ``dpp`` (Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
  Diversity", NeurIPS 2018): greedily the item that adds most to log det of the kernel q_i S_ij q_j with
  q = exp(a * relevance). It adds 2 * a * relevance + log r, where r = det S of the items placed and this one / det S of
  those placed: the part of an item that those placed do not already span. With their a = (1 - s) / (2 * s) that is, up
  to the factor s, (1 - s) * relevance + s * log r; and s = 0 needs no exception. A part r below 1e-6 counts as that:
  whoever resembles everything is still ordered by relevance.

Both take similarities as of :mod:`infnet.ranking.rerank.similarity`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.similarity import Levels, Similarity
from infnet.ranking.rerank.spec import Diversity

__all__ = ["Diversifier", "diversifier"]

Row: TypeAlias = NDArray[np.float64]
_LEAST = 1e-6
"""Of what an item adds, in ``dpp``."""


class Diversifier(Protocol):
    """What is chosen by while a page is filled."""

    def adjusted(self) -> Row:
        """Adjusted scores (N,) for the next position; -inf of those placed. Not to be written to."""

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""


def diversifier(spec: Diversity, relevance: Row, similarity: Similarity) -> Diversifier:
    """The method that a policy declares, for one request.

    Args:
        spec: What was declared.
        relevance: (N,), from 0 to 1.
        similarity: Of the candidates.
    """
    made = {"mmr": _Mmr, "dpp": _Dpp if spec.window is None else _WindowedDpp}[spec.method]
    return made(spec, relevance, similarity)


class _Mmr:
    def __init__(self, spec: Diversity, relevance: Row, similarity: Similarity) -> None:
        self._similarity, self._strength = similarity, spec.strength
        self._relevant = (1.0 - spec.strength) * relevance
        self._recent: deque[Levels] | None = None if spec.window is None else deque(maxlen=spec.window)
        self._largest: Levels | None = None
        self._adjusted: Row = self._relevant

    def adjusted(self) -> Row:
        return self._adjusted

    def place(self, candidate: int) -> None:
        self._relevant[candidate] = -np.inf
        row = self._similarity.row(candidate)
        if self._recent is not None:
            self._recent.append(row)
            self._largest = np.max(self._recent, axis=0)
        elif self._largest is None:
            self._largest = row
        else:
            np.maximum(self._largest, row, out=self._largest)
        self._adjusted = self._relevant - self._similarity.scaled(self._largest, self._strength)


class _Dpp:
    """By one more row of the Cholesky factor per item placed (Chen et al., algorithm 1)."""

    def __init__(self, spec: Diversity, relevance: Row, similarity: Similarity) -> None:
        self._similarity, self._strength = similarity, spec.strength
        self._relevant = (1.0 - spec.strength) * relevance
        self._rows = np.empty((8, len(relevance)))
        self._num_rows = 0
        self._rest = np.ones(len(relevance))
        self._adjusted: Row = self._relevant

    def adjusted(self) -> Row:
        return self._adjusted

    def place(self, candidate: int) -> None:
        self._relevant[candidate] = -np.inf
        rest = self._rest[candidate]
        if rest < _LEAST:  # those before span it: its row would be noise
            self._adjusted[candidate] = -np.inf
            return
        done = self._rows[: self._num_rows]
        row = self._similarity.scaled(self._similarity.row(candidate))
        row -= done[:, candidate] @ done
        row /= np.sqrt(rest)
        if self._num_rows == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._num_rows] = row
        self._num_rows += 1
        self._rest -= row * row
        self._adjusted = self._relevant + self._strength * np.log(np.maximum(self._rest, _LEAST))


class _WindowedDpp:
    """Of the last items only, whose small kernel is inverted anew."""

    def __init__(self, spec: Diversity, relevance: Row, similarity: Similarity) -> None:
        assert spec.window is not None
        self._similarity, self._strength = similarity, spec.strength
        self._relevant = (1.0 - spec.strength) * relevance
        self._recent: deque[tuple[int, Row]] = deque(maxlen=spec.window)
        self._adjusted: Row = self._relevant

    def adjusted(self) -> Row:
        return self._adjusted

    def place(self, candidate: int) -> None:
        self._relevant[candidate] = -np.inf
        row = self._similarity.scaled(self._similarity.row(candidate))
        row[candidate] = 1.0
        self._recent.append((candidate, row))
        rows = np.stack([row for _, row in self._recent])  # (w, N)
        kernel = rows[:, [placed for placed, _ in self._recent]]
        # A pseudo-inverse, as two of them may be the same in every field.
        spanned = np.einsum("wn,wn->n", rows, np.linalg.pinv(kernel, rcond=_LEAST, hermitian=True) @ rows)
        self._adjusted = self._relevant + self._strength * np.log(np.maximum(1.0 - spanned, _LEAST))
