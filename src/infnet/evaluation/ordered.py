"""Rows in order of user and score, sorted once and read by every ranking metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.evaluation.arrays import binary_labels, check_same_length, finite_numbers, user_ids

__all__ = ["OrderedRows", "TieRuns", "order_rows"]

_SIGN = np.uint32(1 << 31)


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
        return np.flatnonzero((self.keys & np.uint64(1)).astype(np.bool_))

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
        tied = self.keys >> np.uint64(1)
        begins = np.flatnonzero(tied[1:] != tied[:-1]) + 1
        bounds = np.concatenate(([0] if len(tied) else [], begins, [len(tied)])).astype(np.int64)
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
    codes, names = _user_codes(ids)
    single = _as_float32(values)
    if single is not None:
        user_bit = 33
        codes <<= np.uint64(user_bit)
        codes |= positive
        keys = _order_preserving_bits(single).astype(np.uint64)
        keys <<= np.uint64(1)
        keys |= codes
    else:
        order = np.argsort(values)
        sorted_values = values[order]
        ranks = np.zeros(len(values), np.uint64)
        np.cumsum(sorted_values[1:] != sorted_values[:-1], dtype=np.uint64, out=ranks[1:])
        user_bit = int(ranks[-1]).bit_length() + 1
        codes <<= np.uint64(user_bit)
        codes |= positive
        keys = ranks
        keys <<= np.uint64(1)
        keys |= codes[order]
    keys.sort()
    begins = np.flatnonzero((keys[1:] ^ keys[:-1]) >= np.uint64(1 << user_bit)) + 1
    starts = np.concatenate(([0], begins, [len(keys)]))
    found = keys[starts[:-1]] >> np.uint64(user_bit)
    return OrderedRows(keys, _user_names(found, names), starts)


def _user_codes(ids: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Codes (n,) under 2**31 in the order of the ids, and the names they stand for: the lowest id alone if the codes
    are distances from it, else the distinct ids (two or more)."""
    lowest = ids.min()
    if int(ids.max()) - int(lowest) < 1 << 31:
        return (ids - lowest).astype(np.uint64), lowest[None]
    names, codes = np.unique(ids, return_inverse=True)
    return codes.astype(np.uint64), names


def _user_names(codes: NDArray[np.uint64], names: NDArray[Any]) -> NDArray[Any]:
    return codes.astype(names.dtype) + names[0] if len(names) == 1 else names[codes.astype(np.int64)]


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32] | None:
    """The same numbers in single precision, -0.0 as 0.0, or None where that would change one."""
    if not (_fits_float32(values[:1024]) and _fits_float32(values)):
        return None
    return values.astype(np.float32) + np.float32(0)


def _fits_float32(values: NDArray[Any]) -> bool:
    if values.dtype in (np.float32, np.float16):
        return True
    if values.dtype.kind in "iu":
        return int(values.min()) >= -(1 << 24) and int(values.max()) <= 1 << 24
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float32) == values).all())


def _order_preserving_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """uint32 that order as the floats do: the sign bit flipped, and all others too where it was set."""
    bits = values.view(np.uint32)
    return bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | _SIGN)
