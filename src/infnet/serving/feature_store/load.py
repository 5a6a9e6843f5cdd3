"""Filling a feature store with the histories of a dataset or a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.dataset import Dataset, History
from infnet.errors import StoreError
from infnet.export.bundle import Bundle
from infnet.serving.feature_store.base import FeatureStore, HistoryEvent

__all__ = ["load_store"]

_CHUNK = 20_000
"""Events appended at once."""
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)
"""Between attempts, when the store does not answer: filling one is no request that somebody waits for."""


def load_store(
    store: FeatureStore,
    source: Bundle | Dataset,
    *,
    before_ms: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Append each user's last events, as many as the store keeps; those that are there already stay as they are.

    Args:
        store: To be filled.
        source: Whose histories.
        before_ms: Only events before this time; all by default.
        progress: Called now and then with the events appended so far, and how many there will be.

    Returns:
        How many events were appended.

    Raises:
        StoreError: The store does not answer, several times over.
    """
    users, items = _keys(source, "users"), _keys(source, "items")
    spans = [
        _Span(history, *_last(history, store.bound(behaviour.name), before_ms))
        for behaviour, history in zip(source.layout.behaviours, source.histories, strict=True)
    ]
    total, done = sum(span.num_events for span in spans), 0
    for behaviour, span in zip(source.layout.behaviours, spans, strict=True):
        for first, last in span.chunks():
            user, places, order = span.events(first, last)
            columns = (
                users(user),
                repeat(behaviour.name),
                items(span.history.items[places]),
                span.history.times[places].tolist(),
                order.tolist(),
            )
            _append(store, [*map(HistoryEvent, *columns)])
            done += len(user)
            if progress is not None:
                progress(done, total)
    return done


@dataclass(frozen=True)
class _Span:
    """The part of each user's history that is loaded."""

    history: History
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def num_events(self) -> int:
        return int((self.ends - self.begins).sum())

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of users with about as many events as are appended at once."""
        upto, first = np.cumsum(self.ends - self.begins), 1  # user 0 is the unknown one
        while first < len(upto):
            last = max(first + 1, int(np.searchsorted(upto, upto[first - 1] + _CHUNK, side="right")))
            if upto[last - 1] > upto[first - 1]:
                yield first, last
            first = last

    def events(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """User, place in the stream, and order of the events of some users.

        An event's order is its rank among those of its user at its time, which it keeps when others follow.
        """
        begins, counts = self.begins[first:last], (self.ends - self.begins)[first:last]
        user = np.repeat(np.arange(first, last), counts)
        places = np.arange(counts.sum()) + np.repeat(begins - np.cumsum(counts) + counts, counts)
        starts, offset = self.history.starts[first : last + 1], self.history.starts[first]
        times = self.history.times[offset : starts[-1]]
        is_first = np.append(True, times[1:] != times[:-1])
        is_first[starts[:-1][np.diff(starts) > 0] - offset] = True
        at = np.arange(len(times))
        ranks = at - np.maximum.accumulate(np.where(is_first, at, 0))
        return user, places, ranks[places - offset]


def _last(history: History, bound: int, before_ms: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the loaded part of each user's history begins and ends."""
    starts, ends = history.starts[:-1], history.starts[1:]
    if before_ms is not None:
        earlier = np.append(0, np.cumsum(history.times < before_ms))
        ends = starts + earlier[ends] - earlier[starts]
    return np.maximum(starts, ends - bound), ends


def _keys(source: Bundle | Dataset, side: Literal["users", "items"]) -> Callable[[NDArray[np.integer]], list[str]]:
    """From indices to keys."""
    if isinstance(source, Bundle):
        return (source.users if side == "users" else source.items).keys
    keys = pl.read_parquet(source.path / side / "keys.parquet")["key"]
    return lambda indices: keys.gather(indices - 1).to_list()


def _append(store: FeatureStore, events: Sequence[HistoryEvent]) -> None:
    for pause_s in _PAUSES_S:
        try:
            return store.append(events)
        except StoreError:
            time.sleep(pause_s)
    return store.append(events)
