"""Histories: per behaviour one stream of past events per user, and for every row where its own history ends.

A row sees only events strictly earlier than itself, and than a behaviour's delay before it: events at its own time,
its own included, are not history. Rows that are equal in every column of the log are one event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EventStreams", "LogEvents", "SeedEvents", "build_streams", "is_repeated"]


@dataclass(frozen=True)
class LogEvents:
    """Log rows of some users, sorted by user, time and order in the log; n of them."""

    user: NDArray[np.int32]
    time: NDArray[np.int64]
    item: NDArray[np.int32]
    is_event: NDArray[np.bool_]
    """(n, F): the row is an event of behaviour a."""


@dataclass(frozen=True)
class SeedEvents:
    """Events of the same users from before the log began."""

    user: NDArray[np.int32]
    time: NDArray[np.int64]
    item: NDArray[np.int32]
    behaviour: NDArray[np.int8]
    order: NDArray[np.int32]
    """Place in its list, oldest first."""


@dataclass(frozen=True)
class EventStreams:
    """What :func:`build_streams` gives."""

    users: list[NDArray[np.int32]]
    """Per behaviour, the events' users, ascending."""
    items: list[NDArray[np.int32]]
    times: list[NDArray[np.int64]]
    ends: NDArray[np.int64]
    """(n, F): events of behaviour a, all users of this call before it included, that lie before the row."""


def is_repeated(
    user: NDArray[np.int32], time: NDArray[np.int64], signature: NDArray[np.uint64], order: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Rows that repeat an earlier one (lower ``order``) of the same user, time and signature; sorted by user, time."""
    repeated = np.zeros(len(user), dtype=bool)
    tied = np.zeros(len(user), dtype=bool)
    tied[1:] = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    tied[:-1] |= tied[1:]
    at = np.flatnonzero(tied)
    at = at[np.lexsort((order[at], signature[at], time[at], user[at]))]
    same = [column[at][1:] == column[at][:-1] for column in (user, time, signature)]
    repeated[at[1:][same[0] & same[1] & same[2]]] = True
    return repeated


def build_streams(rows: LogEvents, seeds: SeedEvents, delays_ms: NDArray[np.int64]) -> EventStreams:
    """The event streams of all behaviours, and every row's history end in each.

    Rows and seeds are put in one order by (user, time). The events that a row may see are those before the first entry
    of its user at its time less the delay, so an exclusive running count, read there, is where its history ends.

    Args:
        rows, seeds: What happened.
        delays_ms: (F,) how long after it an event of behaviour a is seen.
    """
    num_rows, num_behaviours = rows.is_event.shape
    user = np.concatenate([seeds.user, rows.user])
    time = np.concatenate([seeds.time, rows.time])
    item = np.concatenate([seeds.item, rows.item])
    is_row = np.arange(len(user)) >= len(seeds.user)
    place = np.concatenate([seeds.order, np.arange(num_rows, dtype=np.int32)])
    order = np.lexsort((place, is_row, time, user))
    user, time, item = user[order], time[order], item[order]
    seen = {delay: _first_at(user, time, rows, delay) for delay in delays_ms.tolist()}

    streams = EventStreams([], [], [], np.zeros((num_rows, num_behaviours), dtype=np.int64))
    for behaviour, delay in enumerate(delays_ms.tolist()):
        is_event = np.concatenate([seeds.behaviour == behaviour, rows.is_event[:, behaviour]])[order]
        before = np.append(0, np.cumsum(is_event))
        streams.ends[:, behaviour] = before[seen[delay]]
        streams.users.append(user[is_event])
        streams.items.append(item[is_event])
        streams.times.append(time[is_event])
    return streams


def _first_at(user: NDArray[np.int32], time: NDArray[np.int64], rows: LogEvents, delay: int) -> NDArray[np.int64]:
    """For each row, the first entry of its user at its time less the delay or later; entries sorted by user, time."""
    if not len(rows.user):
        return np.zeros(0, dtype=np.int64)
    users, user_rank = np.unique(user, return_inverse=True)
    times, time_rank = np.unique(time, return_inverse=True)  # ranks, since user * time itself might overflow
    entries = user_rank * len(times) + time_rank
    wanted = np.searchsorted(users, rows.user) * len(times) + np.searchsorted(times, rows.time - delay)
    return np.searchsorted(entries, wanted, side="left")
