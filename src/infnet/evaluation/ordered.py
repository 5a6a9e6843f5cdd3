"""Rows in order of user and score, sorted once and read by every ranking metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.evaluation.arrays import binary_labels, check_same_length, finite_numbers, user_ids

__all__ = ["OrderedRows", "TieRuns", "order_rows", "steps"]

_SIGN = np.uint32(1 << 31)
_BLOCK = 1 << 16


@dataclass(frozen=True)
class OrderedRows:
    """n rows of U users, by user, then score, both ascending; of tied rows the negatives come first."""

    keys: NDArray[np.uint64]
    """(n,) sorted. From the top bit: user, score, label. Rows with equal ``key >> 1`` are tied."""
    users: NDArray[Any]
    """(U,) distinct user ids, ascending."""
    starts: NDArray[np.int64]
    """(U + 1,): user u has the rows ``starts[u]:starts[u + 1]``."""

    @property
    def impressions(self) -> NDArray[np.int64]:
        """(U,) rows of each user."""
        return np.diff(self.starts)

    def positive_rows(self) -> NDArray[np.int64]:
        """(P,) positions of the positives, ascending."""
        return np.flatnonzero((self.keys.astype(np.uint8) & 1).view(np.bool_))

    def top(self, k: int) -> OrderedRows:
        """Each user's k rows of highest score, and all rows tied with the last of them."""
        begins, ends = self.starts[:-1], self.starts[1:]
        last = self.keys[np.maximum(ends - k, begins)] >> np.uint64(1)
        cut = np.searchsorted(self.keys, last << np.uint64(1))
        starts = np.concatenate(([0], np.cumsum(ends - cut)))
        kept = np.repeat(cut - starts[:-1], ends - cut) + np.arange(starts[-1])
        return OrderedRows(self.keys[kept], self.users, starts)

    def tie_runs(self) -> TieRuns:
        """The rows as runs of equal user and score."""
        begins = steps(self.keys, lambda change: change > 1)
        bounds = np.concatenate(([0] if len(self.keys) else [], begins, [len(self.keys)])).astype(np.int64)
        positives = np.diff(np.searchsorted(self.positive_rows(), bounds))
        users = np.repeat(np.arange(len(self.users)), np.diff(np.searchsorted(bounds, self.starts)))
        ends = self.starts[1:][users]
        return TieRuns(user=users, first=ends - bounds[1:], last=ends - bounds[:-1], positives=positives)


@dataclass(frozen=True)
class TieRuns:
    """G runs of rows with equal user and score."""

    user: NDArray[np.int64]
    """(G,) position in ``OrderedRows.users``."""
    first: NDArray[np.int64]
    """(G,) rank within the user, best score first, from 0."""
    last: NDArray[np.int64]
    """(G,) rank where the run ends, exclusive."""
    positives: NDArray[np.int64]
    """(G,) positives in the run."""


def order_rows(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> OrderedRows:
    """Sort rows by user and score, exactly: no two scores are merged unless they are equal (-0.0 equals 0.0).

    User, score and label are packed into one 64-bit key, so that a plain sort of integers does it all. That needs
    scores of 32 bits; others (float64 with more digits, wide integers) are replaced by their ranks first.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) finite.
        users: (n,) any integers.

    Raises:
        DataError: Lengths differ, or a value is of the wrong kind.
    """
    positive, values, ids = binary_labels(labels), finite_numbers(scores), user_ids(users)
    check_same_length(labels=positive, scores=values, users=ids)
    if len(ids) == 0:
        return OrderedRows(np.empty(0, np.uint64), ids, np.zeros(1, np.int64))
    distinct, codes = None, ids
    if int(ids.max()) - int(ids.min()) >= 1 << 31:
        distinct, codes = np.unique(ids, return_inverse=True)
    is_single = _fits_float32(values[:1024]) and _fits_float32(values)
    score_bits = 32
    if not is_single:
        order = np.argsort(values)
        codes, positive, values = codes[order], positive[order], _ranks(values[order])
        score_bits = int(values[-1]).bit_length()
    user_bit, lowest = np.uint64(score_bits + 1), codes.min()
    keys = np.empty(len(ids), np.uint64)
    for rows in _blocks(len(ids)):
        block = (codes[rows] - lowest).astype(np.uint64) << user_bit
        block |= (_order_preserving_bits(values[rows]) if is_single else values[rows]) << np.uint64(1)
        block |= positive[rows]
        keys[rows] = block
    keys.sort()
    starts = np.concatenate(([0], steps(keys, lambda change: change >> user_bit != 0), [len(keys)]))
    found = (keys[starts[:-1]] >> user_bit).astype(codes.dtype) + lowest
    return OrderedRows(keys, found if distinct is None else distinct[found], starts)


def steps(keys: NDArray[np.uint64], is_step: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Positions (s,) of keys that differ from the one before in bits for which ``is_step`` is true."""
    found = [np.empty(0, np.int64)]
    for rows in _blocks(len(keys) - 1):
        change = keys[1:][rows] ^ keys[:-1][rows]
        found.append(np.flatnonzero(is_step(change)) + (rows.start + 1))
    return np.concatenate(found)


def _blocks(n: int) -> Iterator[slice]:
    """Slices of n rows that stay in the processor's cache; fresh memory for whole columns costs more than the work."""
    return (slice(first, min(first + _BLOCK, n)) for first in range(0, n, _BLOCK))


def _ranks(ascending: NDArray[Any]) -> NDArray[np.uint64]:
    """0 for the lowest value, one more for each value that differs from the one before."""
    ranks = np.zeros(len(ascending), np.uint64)
    np.cumsum(ascending[1:] != ascending[:-1], dtype=np.uint64, out=ranks[1:])
    return ranks


def _fits_float32(values: NDArray[Any]) -> bool:
    """Whether single precision changes none of the values (n,), n > 0."""
    if values.dtype in (np.float32, np.float16):
        return True
    if values.dtype.kind in "iu":
        return int(values.min()) >= -(1 << 24) and int(values.max()) <= 1 << 24
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float32) == values).all())


def _order_preserving_bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    """32 bits that order as the values, which fit float32: the sign bit flipped, and all others where it was set."""
    # Adding zero turns -0.0 into 0.0.
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return (bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | _SIGN)).astype(np.uint64)
