"""What is known of a request's user and items: from the feature store, or from memory when that fails."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from infnet.errors import StoreError
from infnet.serving.feature_store.base import FeatureStore, Fetched, Lookup, UserRecord
from infnet.serving.live import LiveModel

__all__ = ["FeatureService", "Known", "Recent"]

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


@dataclass(frozen=True)
class Known:
    """What a request is answered from."""

    user: UserRecord | None
    """None if the store fails and has not told of the user lately."""
    items: Sequence[Mapping[str, Any] | None]
    """Dynamic features of each item; empty where nobody reads any."""
    is_last_known: bool
    """Whether the store failed, and this is from memory."""


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

    def fetch(
        self, model: LiveModel, requests: Sequence[tuple[str, str, Sequence[str], int]], *, may_ask: bool = True
    ) -> list[Known]:
        """What is known for requests (id, user, items, time in ms), in one round trip.

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
                before={name: now - delay for name, delay in model.delays_ms.items()},
                limits=limits,
                request_id=request_id,
            )
            for request_id, user, items, now in requests
        ]
        if may_ask and time.monotonic() >= self._closed_until:
            try:
                fetched = self.store.fetch(lookups)
            except StoreError as error:
                self._failed(error)
            else:
                self._closed_until, self._pause_s = 0.0, _FIRST_PAUSE_S
                self._remember(lookups, fetched)
                return [Known(each.user, each.items, is_last_known=False) for each in fetched]
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
        return Known(self._users.get(lookup.user), [self._items.get(item) for item in lookup.items], is_last_known=True)
