"""Which split a row belongs to: by date, by newness (overall or per user), at random, or by expression."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from infnet.data.arrays import chunks
from infnet.schema import Split

__all__ = ["SPLITS", "SplitRule", "day_of", "midnight_ms"]

SPLITS = ("train", "valid", "test")
_SEED = 0x9E3779B97F4A7C15

Codes = NDArray[np.int8]


def midnight_ms(day: date, timezone: str) -> int:
    """The first moment of a day in ``timezone``, in ms since 1970 (UTC)."""
    return round(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)).timestamp() * 1000)


def day_of(time_ms: int, timezone: str) -> str:
    """The day a moment falls on in ``timezone``, as text; the bare number if it is no date."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=ZoneInfo(timezone)).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


class SplitRule:
    """Codes of rows: 0 train, 1 valid, 2 test, 3 + k for the k-th extra split.

    Attributes:
        names: The splits' names by code.
    """

    def __init__(self, split: Split, timezone: str, kept_times: Callable[[], NDArray[np.int64]]) -> None:
        """Find the borders; ``kept_times`` gives the times of all rows that are in no extra split."""
        self.names = (*SPLITS, *split.extra)
        self._split = split
        self._borders: tuple[int, int] | None = None
        if split.valid_from is not None and split.test_from is not None:
            self._borders = midnight_ms(split.valid_from, timezone), midnight_ms(split.test_from, timezone)
        elif not split.per_user and not split.random:
            times = np.sort(kept_times())
            train_end, valid_end = (int(end[0]) for end in self._newest(np.array([len(times)])))
            # Rows at the very time of a border stay together, on its older side.
            self._borders = (times[train_end - 1] + 1, times[valid_end - 1] + 1) if len(times) else (0, 0)

    def codes(self, user: NDArray[np.int32], time: NDArray[np.int64], row: NDArray[np.int64], extra: Codes) -> Codes:
        """Codes (n,) of rows sorted by user and time; all rows of a user are in one call.

        Args:
            row: Number in the log, which random splits are drawn by.
            extra: 0, or 1 + k for rows of the k-th extra split.
        """
        if self._borders is not None:
            codes = np.searchsorted(np.array(self._borders), time, side="right")
        elif self._split.random:
            codes = self._random(row)
        else:
            codes = np.zeros(len(time), dtype=np.int64)
            ordinary = extra == 0
            codes[ordinary] = self._per_user(user[ordinary], time[ordinary])
        return np.where(extra > 0, 2 + extra, codes).astype(np.int8)

    def _newest(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of so many rows in time order, where training and validation end; at least one row is for training."""
        valid, test = self._split.fractions or (0.0, 0.0)
        train_end = np.ceil(np.round(counts * (1 - valid - test), 6)).astype(np.int64)
        valid_end = np.ceil(np.round(counts * (1 - test), 6)).astype(np.int64)
        return np.maximum(train_end, 1), np.maximum(valid_end, 1)

    def _per_user(self, user: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(user):
            return np.zeros(0, dtype=np.int64)
        starts = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]]))
        counts = np.diff(np.concatenate([starts, [len(user)]]))
        train_end, valid_end = self._newest(counts)
        last_train, last_valid = time[starts + train_end - 1], time[starts + valid_end - 1]
        return (time > np.repeat(last_train, counts)).astype(np.int64) + (time > np.repeat(last_valid, counts))

    def _random(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        valid, test = self._split.fractions or (0.0, 0.0)
        codes = np.empty(len(row), dtype=np.int64)
        for part in chunks(len(row)):
            drawn = _uniform(row[part])
            codes[part] = np.where(drawn < test, 2, np.where(drawn < test + valid, 1, 0))
        return codes


def _uniform(row: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) per row number, the same on every machine (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (row.astype(np.uint64) + np.uint64(1)) * np.uint64(_SEED)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
