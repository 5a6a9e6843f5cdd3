"""What is known of a request's user and items: from the feature store, or from memory when that fails."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from infnet.errors import StoreError
from infnet.serving.feature_store.base import FeatureStore, Fetched, Lookup, UserRecord
from infnet.serving.feature_store.records import LATEST_MS
from infnet.serving.live import LiveModel

__all__ = ["FeatureService", "Known", "Recent", "Wanted", "seen_as"]

_log = structlog.get_logger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

_K = TypeVar("_K")
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """The latest entries of a mapping; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[_K, _V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: _K) -> bool:
        return key in self._held

    def get(self, key: _K) -> _V | None:
        """The value of a key that is still there."""
        return self._held.get(key)

    def put(self, key: _K, value: _V) -> None:
        """Set the value of a key; the entry set longest ago goes if there are too many."""
        with self._lock:
            self._held[key] = value
            self._held.move_to_end(key)
            if len(self._held) > self._limit:
                self._held.popitem(last=False)


def seen_as(field: str) -> str:
    """The history in which the store has what a user saw of a field that is capped; no behaviour has such a name."""
    return f"seen:{field}"


class Wanted(NamedTuple):
    """What a request is to be answered from."""

    request_id: str
    user: str
    items: Sequence[str]
    """Whose dynamic features are wanted."""
    time_ms: int
    seen_since: Mapping[str, int] = {}
    """By field that is capped, since when impressions count, in ms since 1970."""


@dataclass(frozen=True)
class Known:
    """What a request is answered from."""

    user: UserRecord | None
    """None if the store fails and has not told of the user lately."""
    items: Sequence[Mapping[str, Any] | None]
    """Dynamic features of each item; empty where nobody reads any."""
    is_last_known: bool
    """Whether the store failed, and this is from memory."""
    seen: Mapping[str, Sequence[tuple[str, int]]] | None = None
    """By field that is capped, what the user saw and when; None if the store fails and has not told of it lately."""


class FeatureService:
    """Reads the feature store for the service, and bridges its failures.

    After a failure the store is left alone for a moment, a longer one after each further failure (up to a second), so
    that a store that hangs costs a few requests its timeout, and all others nothing.

    Args:
        store: The store.
        remember: Users, and items, whose latest state is kept in memory for when the store fails.
    """

    def __init__(self, store: FeatureStore, *, remember: int = 20_000) -> None:
        self.store = store
        self._users: Recent[str, UserRecord] = Recent(remember)
        self._items: Recent[str, Mapping[str, Any]] = Recent(5 * remember)
        self._closed_until = 0.0
        self._pause_s = _FIRST_PAUSE_S

    @property
    def is_available(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._closed_until == 0.0

    def fetch(self, model: LiveModel, requests: Sequence[Wanted], *, may_ask: bool = True) -> list[Known]:
        """What is known for requests, in one round trip.

        Args:
            model: Its behaviours are looked up.
            requests: That are answered together; the items' dynamic features are looked up too.
            may_ask: Whether there is time to ask the store.
        """
        limits = {behaviour.name: behaviour.length for behaviour in model.ranker.bundle.layout.behaviours}
        lookups = [
            Lookup(
                user=user,
                items=items,
                before={name: now - delay for name, delay in model.delays_ms.items()}
                | {seen_as(field): LATEST_MS for field in seen_since},
                since={seen_as(field): since for field, since in seen_since.items()},
                limits=limits,
                request_id=request_id,
            )
            for request_id, user, items, now, seen_since in requests
        ]
        if may_ask and time.monotonic() >= self._closed_until:
            try:
                fetched = self.store.fetch(lookups)
            except StoreError as error:
                self._failed(error)
            else:
                self._closed_until, self._pause_s = 0.0, _FIRST_PAUSE_S
                self._remember(lookups, fetched)
                return [
                    _known(each.user, each.items, lookup, is_last_known=False)
                    for each, lookup in zip(fetched, lookups, strict=True)
                ]
        return [self._last_known(lookup) for lookup in lookups]

    def _failed(self, error: StoreError) -> None:
        if self.is_available:
            _log.warning("feature_store_failed", reason=str(error))
        self._closed_until = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _remember(self, lookups: Sequence[Lookup], fetched: Sequence[Fetched]) -> None:
        for lookup, each in zip(lookups, fetched, strict=True):
            self._users.put(lookup.user, each.user)
            for item, values in zip(lookup.items, each.items, strict=True):
                if values is not None:
                    self._items.put(item, values)

    def _last_known(self, lookup: Lookup) -> Known:
        items = [self._items.get(item) for item in lookup.items]
        return _known(self._users.get(lookup.user), items, lookup, is_last_known=True)

    def last_known(self, item: str, field: str) -> Any:
        """A dynamic feature of an item as the store last had it; None if it was not asked lately."""
        return (self._items.get(item) or {}).get(field)


def _known(
    user: UserRecord | None, items: Sequence[Mapping[str, Any] | None], lookup: Lookup, *, is_last_known: bool
) -> Known:
    """With what the user saw apart from what they did."""
    if not lookup.since or user is None:
        return Known(user, items, is_last_known, None if lookup.since else {})
    names = {name.removeprefix(seen_as("")): name for name in lookup.since if name in user.histories}
    seen = {field: [*zip(*user.histories[name], strict=True)] for field, name in names.items()}
    done = {name: history for name, history in user.histories.items() if name not in lookup.since}
    return Known(replace(user, histories=done), items, is_last_known, seen)
