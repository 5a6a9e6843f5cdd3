"""How alike items are, from 0 to 1: the share of fields in which they agree, or the cosine of their vectors.

A negative cosine counts as 0 in ``mmr``; ``dpp`` takes (1 + cosine) / 2, as Chen et al. (NeurIPS 2018) do, since its
kernel has to stay positive semidefinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.spec import Diversity
from infnet.ranking.rerank.values import FieldValues, SingleValues

__all__ = ["Levels", "Similarity", "by_fields", "by_vectors"]

Levels: TypeAlias = NDArray[Any]
"""(N,) numbers that order similarities; small integers where these will do, as they are faster."""


class Similarity(Protocol):
    """Between the candidates of one request."""

    def row(self, candidate: int) -> Levels:
        """Everybody's similarity to a candidate, (N,); a new array."""

    def scaled(self, levels: Levels, factor: float = 1.0) -> NDArray[np.float64]:
        """The factor times similarities from 0 to 1, (N,); a new array."""


def by_fields(fields: Sequence[FieldValues]) -> Similarity:
    """The mean of the fields' agreements; of a list its Jaccard similarity."""
    single = [field for field in fields if isinstance(field, SingleValues)]
    return _Equalities(single) if len(single) == len(fields) else _Agreements(fields)


def by_vectors(vectors: NDArray[np.floating], spec: Diversity) -> Similarity:
    """The cosine of vectors (N, D); one of zeros is like no other."""
    return _Cosines(vectors, is_shifted=spec.method == "dpp")


class _Equalities:
    def __init__(self, fields: Sequence[SingleValues]) -> None:
        self._fields = fields

    def row(self, candidate: int) -> Levels:
        equal = self._fields[0].equal(candidate).view(np.uint8)
        for field in self._fields[1:]:
            equal += field.equal(candidate).view(np.uint8)
        return equal

    def scaled(self, levels: Levels, factor: float = 1.0) -> NDArray[np.float64]:
        return levels * (factor / len(self._fields))


class _Agreements:
    def __init__(self, fields: Sequence[FieldValues]) -> None:
        self._fields = fields

    def row(self, candidate: int) -> Levels:
        agreed = self._fields[0].agreement(candidate)
        for field in self._fields[1:]:
            agreed += field.agreement(candidate)
        return agreed / len(self._fields)

    def scaled(self, levels: Levels, factor: float = 1.0) -> NDArray[np.float64]:
        return levels * factor


class _Cosines:
    def __init__(self, vectors: NDArray[np.floating], is_shifted: bool) -> None:
        unit = vectors.astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", unit, unit))
        self._unit = unit / np.where(lengths > 0, lengths, 1.0)[:, None]
        self._is_shifted = is_shifted

    def row(self, candidate: int) -> Levels:
        cosines = self._unit @ self._unit[candidate]
        return (1.0 + cosines) / 2.0 if self._is_shifted else np.maximum(cosines, 0.0)

    def scaled(self, levels: Levels, factor: float = 1.0) -> NDArray[np.float64]:
        return levels * factor
