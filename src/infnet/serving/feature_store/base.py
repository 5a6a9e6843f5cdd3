"""What every feature store promises. It holds raw values and keys, never rows of a model: models come and go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infnet.data.layout import BehaviourLayout
from infnet.serving.feature_store.accounts import Accounts

__all__ = ["FeatureStore", "Fetched", "History", "HistoryEvent", "Lookup", "UserRecord", "history_bounds"]

_SLACK, _DELAYED_SLACK = 50, 1000
"""Events kept beyond those that a model reads: room for late ones, and for those that wait for a delay to pass."""
_OTHER_BOUND = 1000


class History(NamedTuple):
    """Past events of one behaviour, most recent first."""

    items: list[str]
    times: list[int]
    """ms since 1970."""


@dataclass(frozen=True)
class UserRecord:
    """What a store knows of a user."""

    values: Mapping[str, Any] | None = None
    """Raw user features that were put there; None if none ever were."""
    histories: Mapping[str, History] = field(default_factory=dict)
    """By behaviour; every behaviour that was asked for is there."""


class HistoryEvent(NamedTuple):
    """Something a user did. The same event appended twice, ``order`` included, is kept once."""

    user: str
    behaviour: str
    item: str
    time_ms: int
    order: int
    """Among a user's events at one time, the higher one is the more recent (of equal ones, the item that sorts later);
    from 0 to 2**63 - 1."""


@dataclass(frozen=True)
class Lookup:
    """What one request asks a store for."""

    user: str
    items: Sequence[str] = ()
    """Whose dynamic features are wanted; empty where the model reads none."""
    before: Mapping[str, int] = field(default_factory=dict)
    """Per behaviour wanted: only events strictly before this time, ms since 1970."""
    since: Mapping[str, int] = field(default_factory=dict)
    """Per behaviour: of these only events from this time on; all where it is not said."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Per behaviour, how many of these at most, the most recent ones; all that are kept where it is not said."""
    request_id: str | None = None
    """Remembered as this user's for :meth:`FeatureStore.users_of`."""


@dataclass(frozen=True)
class Fetched:
    """What a store answers."""

    user: UserRecord
    items: list[Mapping[str, Any] | None]
    """Raw dynamic features of each item asked for, None where none were put."""


class FeatureStore(ABC):
    """Users' features and histories, and items' dynamic features. Every method is safe to call from several threads.

    Histories are bounded: per behaviour the most recent events, older ones are dropped. A history, and the features of
    a user or an item, are forgotten when they have not been written for ``ttl_s`` seconds.

    Args:
        bounds: Per behaviour, how many events of a user are kept (:func:`history_bounds`); 1,000 of any other.

    Attributes:
        accounts: What ads were sold for, and what their campaigns have spent.

    Raises:
        StoreError: From every method, when the store cannot be reached or does not answer in time.
    """

    accounts: Accounts

    def __init__(self, bounds: Mapping[str, int]) -> None:
        self._bounds = dict(bounds)

    def bound(self, behaviour: str) -> int:
        """How many events of a behaviour are kept of a user."""
        return self._bounds.get(behaviour, _OTHER_BOUND)

    @abstractmethod
    def fetch(self, lookups: Sequence[Lookup]) -> list[Fetched]:
        """The answers to several lookups, in one round trip."""

    @abstractmethod
    def append(self, events: Sequence[HistoryEvent]) -> None:
        """Add events to histories; they may come in any order and repeatedly.

        After a failure none has been added or, of more than a thousand, some: append them again.

        Raises:
            DataError: A time or an order is out of range.
        """

    @abstractmethod
    def put_users(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw features of users, replacing what was set before.

        Raises:
            DataError: A value has no JSON.
        """

    @abstractmethod
    def put_items(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw dynamic features of items, replacing what was set before.

        Raises:
            DataError: A value has no JSON.
        """

    @abstractmethod
    def users_of(self, request_ids: Sequence[str]) -> list[str | None]:
        """Whose requests these were; None for those not remembered (any more)."""

    @abstractmethod
    def mark(self, name: str, value: str, *, anew: bool = True) -> bool:
        """Remember a note for good, such as what was loaded, or how far a log was read.

        Args:
            name: Its name.
            value: What is remembered.
            anew: Whether there may be no such note yet; a store that has lost everything has none any more.

        Returns:
            Whether it is remembered.
        """

    @abstractmethod
    def marked(self, name: str) -> str | None:
        """The note of a name."""

    @abstractmethod
    def ping(self) -> None:
        """See that the store answers."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""


def history_bounds(behaviours: Sequence[BehaviourLayout], delays_s: Mapping[str, float]) -> dict[str, int]:
    """How many events of each behaviour a store keeps of a user."""
    return {b.name: b.length + (_DELAYED_SLACK if delays_s.get(b.name) else _SLACK) for b in behaviours}
