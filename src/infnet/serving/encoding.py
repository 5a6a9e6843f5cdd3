"""Requests as callers have them -> requests as the engine takes them, by the encoder of training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.data.batches import gap_buckets
from infnet.errors import DataError, SpecError, did_you_mean
from infnet.export.bundle import Bundle
from infnet.export.engine import EncodedRequest, Values
from infnet.export.keys import Key
from infnet.features import Feature, Side
from infnet.serving.feature_store.base import UserRecord

__all__ = ["RankRequest", "RequestEncoder", "UserState"]

_QUARTER_HOUR_MS = 900_000
"""No time zone's hours begin anywhere but on one of these."""
_MOST_REMEMBERED = 100_000
_LATEST_MS = 253_402_300_800_000
"""The year 10000."""


@dataclass(frozen=True)
class UserState:
    """What is known of a user at some moment, in the bundle's numbering."""

    values: Values
    histories: tuple[NDArray[np.integer], ...]
    """Per behaviour the items of past events, most recent first."""
    times: tuple[NDArray[np.int64], ...]
    """When they were, in ms since 1970."""


@dataclass(frozen=True)
class RankRequest:
    """One user wants an order of some items."""

    user: Key | UserState
    """A key of the bundle's users; a key that it does not know stands for a new user."""
    candidates: Sequence[Key]
    """Item keys; one that the bundle does not know is scored as an item nobody knows anything of."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Raw values of context features; those that are left out are missing."""
    candidate_values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Raw values, one per candidate, of candidate features that read no column of the item."""
    time_ms: int | None = None
    """When, in ms since 1970; now by default."""


class RequestEncoder:
    """Encodes requests for one bundle; safe to use from several threads.

    Attributes:
        context_names: Features that requests may bring.
        candidate_names: Features that requests may bring per candidate.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._layout = bundle, bundle.layout
        features = bundle.encoder.features
        self._user = [features[f.name] for f in self._layout.side("user")]
        self._context = [features[f.name] for f in self._layout.side("context")]
        self._candidate = [features[f.name] for f in self._layout.side("candidate")]
        found = {f.name: bundle.item_values(f.name) for f in self._candidate if f.reads == "item"}
        self._item_values = {name: values for name, values in found.items() if values is not None}
        self._remembered: dict[tuple[str, Any], Values] = {}
        self.context_names = frozenset(feature.name for feature in self._context)
        self.candidate_names = frozenset(f.name for f in self._candidate if f.name not in self._item_values)

    def encode(self, request: RankRequest) -> EncodedRequest:
        """A request in the bundle's numbering.

        Raises:
            DataError: A feature is unknown or its value cannot be read; the message names both.
        """
        now = _checked_time(request.time_ms)
        if isinstance(request.candidates, str | bytes):
            raise DataError(f"candidates is the text {request.candidates!r}, wanted a list of item keys")
        user = request.user if isinstance(request.user, UserState) else self.snapshot(request.user)
        items = self._bundle.items.find(request.candidates)
        return EncodedRequest(
            user=user.values,
            context=self._encode_context(request.context, now),
            items=items,
            candidate=self._encode_candidates(request.candidate_values, items, now),
            histories=[h[: b.length] for h, b in zip(user.histories, self._layout.behaviours, strict=True)],
            gaps=self._gaps(user, now) if self._layout.has_gaps else None,
        )

    def snapshot(self, key: Key) -> UserState:
        """A user as of the end of the dataset that the bundle was made from; nothing but "unknown" for a new one."""
        user = int(self._bundle.users.find([key])[0])
        histories, times = [], []
        for history in self._bundle.histories:
            start, end = history.starts[user], history.starts[user + 1]
            histories.append(history.items[start:end][::-1])
            times.append(history.times[start:end][::-1])
        return UserState(self._stored(user), tuple(histories), tuple(times))

    def recall(self, key: Key, record: UserRecord) -> UserState:
        """A user as a feature store knows them; of one without features there, the bundle's.

        Args:
            key: The user's.
            record: Its histories are in the bundle's behaviours; items that the bundle does not know are left out.

        Raises:
            DataError: A feature is unknown, or a value cannot be read.
        """
        if record.values is None:
            values = self._stored(int(self._bundle.users.find([key])[0]))
        else:
            values = self._describe_values(key, record.values)
        histories, times = [], []
        for behaviour in self._layout.behaviours:
            history = record.histories.get(behaviour.name)
            items = self._bundle.items.find(history.items if history else ())
            when = np.array(history.times if history else (), dtype=np.int64)
            is_known = items > 0
            if not is_known.all():
                items, when = items[is_known], when[is_known]
            histories.append(items)
            times.append(when)
        return UserState(values, tuple(histories), tuple(times))

    def describe(
        self,
        key: Key | None,
        features: Mapping[str, Any],
        events: Mapping[str, Sequence[tuple[Key, int]]],
    ) -> UserState:
        """A user from raw values.

        Args:
            key: The user's own.
            features: Raw values by feature; those that are left out are missing.
            events: Per behaviour (item key, ms since 1970), most recent first; items that the bundle does not know are
                left out, as in preparation.

        Raises:
            DataError: A feature or behaviour is unknown, or a value cannot be read.
        """
        behaviours = [b.name for b in self._layout.behaviours]
        for name in events:
            if name not in behaviours:
                raise DataError(f"no behaviour is called '{name}'{did_you_mean(name, behaviours)}")
        encoded = self._describe_values(key, features)
        histories, times = [], []
        for name in behaviours:
            listed = events.get(name, ())
            items = self._bundle.items.find([item for item, _ in listed])
            when = np.array([_checked_time(at) for _, at in listed], dtype=np.int64)
            is_known = items > 0
            histories.append(items[is_known])
            times.append(when[is_known])
        return UserState(encoded, tuple(histories), tuple(times))

    def readable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those raw values of user or candidate features that this bundle can read."""
        features = {feature.name: feature for feature in (*self._user, *self._candidate)}
        return {name: raw for name, raw in values.items() if name in features and self._reads(features[name], raw)}

    def _reads(self, feature: Feature, raw: Any) -> bool:
        try:
            self._read(feature, [raw], None)
        except DataError:
            return False
        return True

    def _describe_values(self, key: Key | None, features: Mapping[str, Any]) -> Values:
        keys = {feature.name: key for feature in self._user if feature.reads == "key"}
        return self._encode_side("user", self._user, {**features, **keys}, 0)

    def _stored(self, user: int) -> Values:
        ids, dense = self._bundle.user_features
        return Values(ids[user], dense[user])

    def _encode_context(self, given: Mapping[str, Any], now: int) -> Values:
        return self._encode_side("context", self._context, given, now)

    def _encode_side(self, side: Side, features: Sequence[Feature], given: Mapping[str, Any], now: int) -> Values:
        names = [feature.name for feature in features]
        for name in given:
            if name not in names:
                raise DataError(f"no {side} feature is called '{name}'{did_you_mean(name, names)}")
        parts = [self._encode_value(feature, given.get(feature.name), now) for feature in features]
        ids = [part.ids for part, feature in zip(parts, features, strict=True) if feature.storage != "dense"]
        dense = [part.dense for part, feature in zip(parts, features, strict=True) if feature.storage == "dense"]
        return Values(np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([np.zeros(0, np.float32), *dense]))

    def _encode_value(self, feature: Feature, raw: Any, now: int) -> Values:
        """One value, remembered: requests come with few different ones."""
        reads_time = feature.reads == "time"
        at: Any = (feature.name, now // _QUARTER_HOUR_MS if reads_time else (type(raw), raw))
        try:
            known = self._remembered.get(at)
        except TypeError:  # a list cannot be looked up
            at = known = None
        if known is not None:
            return known
        encoded = self._read(feature, [raw], [now] if reads_time else None)[0]
        nothing = np.zeros(0)
        is_dense = feature.storage == "dense"
        values = Values(
            nothing.astype(np.int32) if is_dense else encoded.astype(np.int32, copy=False),
            encoded.astype(np.float32, copy=False) if is_dense else nothing.astype(np.float32),
        )
        if at is not None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered = {}
            self._remembered[at] = values
        return values

    def _encode_candidates(self, given: Mapping[str, Sequence[Any]], items: NDArray[np.integer], now: int) -> Values:
        layout, num, encoder = self._layout, len(items), self._bundle.encoder
        names = [feature.name for feature in self._candidate if feature.name not in self._item_values]
        for name, values in given.items():
            if name not in names:
                raise DataError(f"no candidate feature is called '{name}'{did_you_mean(name, names)}")
            if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
                raise DataError(f"candidate feature '{name}' is {values!r}, wanted a list of one value per candidate")
            if len(values) != num:
                raise DataError(f"candidate feature '{name}' has {len(values)} values, wanted {num}, one per candidate")
        ids = np.empty((num, layout.id_width("candidate")), np.int32)
        dense = np.empty((num, layout.dense_width("candidate")), np.float32)
        columns = layout.id_columns("candidate") | layout.dense_columns("candidate")
        for feature in self._candidate:
            place = (dense if feature.storage == "dense" else ids)[:, columns[feature.name]]
            of_item = self._item_values.get(feature.name)
            if of_item is not None:
                place[:] = feature.encode_at(of_item[items], now, encoder.fitted(feature.name))
            elif feature.name in given:
                times = [now] * num if feature.reads == "item" else None
                place[:] = self._read(feature, list(given[feature.name]), times)
            else:
                place[:] = encoder.missing(feature.name)
        return Values(ids, dense)

    def _read(
        self, feature: Feature, raw: list[Any], times: list[int] | None
    ) -> NDArray[np.int32] | NDArray[np.float32]:
        try:
            return self._bundle.encoder.encode(feature.name, raw, times)
        except (SpecError, UnicodeError) as error:
            shown = ", ".join(repr(value) for value in raw[:3])
            raise DataError(f"feature '{feature.name}': cannot read {shown} ({error})") from error

    def _gaps(self, user: UserState, now: int) -> list[NDArray[np.int32]]:
        pairs = zip(user.times, self._layout.behaviours, strict=True)
        return [gap_buckets(now - times[: behaviour.length]) for times, behaviour in pairs]


def _checked_time(time_ms: int | None) -> int:
    """Now, if there is none."""
    if time_ms is None:
        return time.time_ns() // 1_000_000
    if isinstance(time_ms, bool) or not isinstance(time_ms, int | np.integer) or abs(time_ms) > _LATEST_MS:
        raise DataError(f"time {time_ms!r} is no time; wanted an integer, milliseconds since 1970")
    return int(time_ms)
