"""Which rows make up one request, and which requests make up one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Requests", "SessionGrouping", "group_sessions"]

_WINDOW = 64
"""Batches in whose rows requests of one size are brought together."""


class SessionGrouping(BaseModel):
    """Group a user's rows of one session into one request, so that training shares the user side as serving does.

    The rows of a request share the user, the context fields and the history before the first of them: like a served
    page, none sees what the user did with the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    gap_s: float = Field(default=1800.0, ge=0)
    """A pause longer than this many seconds starts a new session."""
    max_candidates: int = Field(default=16, ge=2)
    """Longer sessions become several requests."""


@dataclass(frozen=True)
class Requests:
    """Consecutive rows cut into requests: request r holds rows ``starts[r]:starts[r + 1]``."""

    starts: NDArray[np.int64]

    def batches(self, batch_size: int, seed: int | None, epoch: int) -> list[NDArray[np.int64]]:
        """Row numbers (R, N) of every batch, -1 where a request has fewer than N rows.

        A batch holds as many requests as fit into ``batch_size`` rows, at least one. With a seed, requests are
        shuffled by ``(seed, epoch)``, those of one size into batches together as far as a window of many batches goes,
        since all requests of a batch are padded to its largest; inside a batch they stand in row order, which reads
        memory maps in order.
        """
        num, sizes = len(self.starts) - 1, np.diff(self.starts)
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        order = np.arange(num) if rng is None else rng.permutation(num)
        if num == 0 or sizes.max() == 1:
            parts = np.split(order, np.arange(batch_size, num, batch_size))
        elif rng is None:
            parts = np.split(order, _cuts(np.cumsum(sizes), batch_size))
        else:
            order = _by_size(order, sizes, _WINDOW * batch_size)
            parts = np.split(order, _cuts(np.cumsum(sizes[order]), batch_size))
            parts = [parts[place] for place in rng.permutation(len(parts))]
        return [_rows(np.sort(part), self.starts) for part in parts if len(part)]


def _by_size(order: NDArray[np.int64], sizes: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """Requests ordered by size within consecutive windows of so many rows."""
    windows = np.split(order, _cuts(np.cumsum(sizes[order]), window))
    return np.concatenate([part[np.argsort(sizes[part], kind="stable")] for part in windows])


def _cuts(ends: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Where to cut so that no part holds more than ``batch_size`` rows (or one request)."""
    cuts: list[int] = []
    at, used = 0, 0
    while True:
        nxt = max(int(np.searchsorted(ends, used + batch_size, side="right")), at + 1)
        if nxt >= len(ends):
            return np.array(cuts, dtype=np.int64)
        cuts.append(nxt)
        at, used = nxt, int(ends[nxt - 1])


def _rows(requests: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    first, sizes = starts[requests], starts[requests + 1] - starts[requests]
    offsets = np.arange(sizes.max())
    return np.where(offsets < sizes[:, None], first[:, None] + offsets, -1)


def group_sessions(
    users: NDArray[np.int32], times: NDArray[np.int64], contexts: Sequence[NDArray[Any]], grouping: SessionGrouping
) -> Requests:
    """Cut rows, sorted by user and time, into requests.

    Args:
        users: (n,).
        times: (n,) ms.
        contexts: (n, c) each, ids and dense values; rows of one request agree in all of them.
        grouping: The pause and the size at which to cut.
    """
    if len(users) == 0:
        return Requests(np.zeros(1, dtype=np.int64))
    new = np.ones(len(users), dtype=bool)
    new[1:] = (users[1:] != users[:-1]) | (times[1:] - times[:-1] > grouping.gap_s * 1000)
    for context in contexts:
        new[1:] |= (context[1:] != context[:-1]).any(axis=1)
    begins = np.flatnonzero(new)
    rank = np.arange(len(users)) - np.repeat(begins, np.diff(np.append(begins, len(users))))
    starts = np.flatnonzero(rank % grouping.max_candidates == 0)
    return Requests(np.append(starts, len(users)))
