"""Ads on a page: they come before everything else wherever they may stand, in the order of their auction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.diversity import Diversifier, Row

__all__ = ["AdOrder", "AdsFirst"]


@dataclass(frozen=True)
class AdOrder:
    """Which of N candidates are ads, and in which order they want positions."""

    is_ad: NDArray[np.bool_]
    """(N,)."""
    places: NDArray[np.intp]
    """(n,) of the ads that may be shown, best first; others are not."""


class AdsFirst:
    """Diversity among the other items, which sees the ads between them, and does not touch the order of these.

    Args:
        behind: Adjusts scores.
        num_ads: So many of the candidates are ads, the first ones, best first.
    """

    def __init__(self, behind: Diversifier, num_ads: int) -> None:
        self._behind = behind
        self._lead = np.arange(num_ads, 0, -1, dtype=np.float64)

    def adjusted(self) -> Row:
        """Adjusted scores (N,) for the next position; -inf of those placed."""
        scores = self._behind.adjusted().copy()
        num = len(self._lead)
        top = max(0.0, scores[num:].max(initial=0.0))
        scores[:num] = np.where(np.isneginf(scores[:num]), -np.inf, top + self._lead)
        return scores

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""
        self._behind.place(candidate)
