"""Constraints on the candidates of one request, told after each position what was placed."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.spec import AdLoad
from infnet.ranking.rerank.values import FieldValues

__all__ = ["AdRule", "Mask", "QuotaRule", "Rule", "SharedValueRule"]

Mask: TypeAlias = NDArray[np.bool_]


class Rule(Protocol):
    """One constraint while a page is filled."""

    def refused(self) -> Mask | None:
        """Candidates (N,) that may not stand at the next position; None if all may. Not to be written to."""

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""


class SharedValueRule:
    """At most so many items that share a value within any so many consecutive positions.

    Args:
        values: Of the field.
        num: Candidates.
        at_most: Items that share a value.
        within: Consecutive positions; None for the whole page.
    """

    def __init__(self, values: FieldValues, num: int, at_most: int, within: int | None) -> None:
        self._values, self._at_most = values, at_most
        # The positions before the next one that share a window with it.
        self._recent: deque[int] | None = None if within is None else deque()
        self._reach = 0 if within is None else within - 1
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._full = np.zeros(num, dtype=np.int32)
        """By candidate how many of its values are there as often as they may be."""
        self._num_full = 0
        self._refused: Mask | None = None

    def refused(self) -> Mask | None:
        """Who has a value that is there often enough."""
        if not self._num_full:
            return None
        if self._refused is None:
            self._refused = self._full > 0
        return self._refused

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""
        for code in self._values.codes(candidate):
            self._counts[code] += 1
            if self._counts[code] == self._at_most:
                self._mark(code, 1)
        if self._recent is None:
            return
        self._recent.append(candidate)
        if len(self._recent) > self._reach:
            for code in self._values.codes(self._recent.popleft()):
                self._counts[code] -= 1
                if self._counts[code] == self._at_most - 1:
                    self._mark(code, -1)

    def _mark(self, code: int, change: int) -> None:
        (np.add if change > 0 else np.subtract)(self._full, self._values.having(code), out=self._full)
        self._num_full += change
        self._refused = None


class AdRule:
    """At most so many ads within any so many consecutive positions, and none before the first allowed one.

    Args:
        spec: The limits.
        is_ad: (N,).
    """

    def __init__(self, spec: AdLoad, is_ad: Mask) -> None:
        self._limit, self._is_ad = spec.ad_load, is_ad
        self._recent: deque[int] = deque(maxlen=self._limit.per - 1)
        self._position = 1

    def refused(self) -> Mask | None:
        """All ads, or None."""
        is_full = sum(self._recent) >= self._limit.at_most
        return self._is_ad if is_full or self._position < self._limit.first else None

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""
        self._recent.append(int(self._is_ad[candidate]))
        self._position += 1


class QuotaRule:
    """At least so many wanted items in each block of positions, as long as there are any.

    Args:
        at_least: Of each block.
        within: Positions of a block.
        is_wanted: (N,).
    """

    def __init__(self, at_least: int, within: int, is_wanted: Mask) -> None:
        self._at_least, self._within = at_least, within
        self._is_wanted, self._others = is_wanted, ~is_wanted
        self._num_left = int(is_wanted.sum())
        self._remaining, self._lacking = within, at_least

    def refused(self) -> Mask | None:
        """All who are not wanted, or None."""
        return self._others if self._num_left and self._remaining <= self._lacking else None

    def place(self, candidate: int) -> None:
        """A candidate takes the next position."""
        if self._is_wanted[candidate]:
            self._num_left -= 1
            self._lacking -= 1
        self._remaining -= 1
        if not self._remaining:
            self._remaining, self._lacking = self._within, self._at_least
