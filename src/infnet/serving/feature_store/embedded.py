"""The feature store of one process: a SQLite database in a directory."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from infnet.serving.feature_store.base import FeatureStore, Fetched, History, HistoryEvent, Lookup, UserRecord
from infnet.serving.feature_store.database import Database
from infnet.serving.feature_store.embedded_accounts import EmbeddedAccounts
from infnet.serving.feature_store.records import (
    LATEST_MS,
    as_bytes,
    as_text,
    check_events,
    decode_values,
    encode_values,
)

__all__ = ["EmbeddedStore"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE histories (
    id INTEGER PRIMARY KEY, user TEXT NOT NULL, behaviour TEXT NOT NULL,
    size INTEGER NOT NULL, expires_ms INTEGER NOT NULL, UNIQUE (user, behaviour)
);
CREATE TABLE events (
    history INTEGER NOT NULL, time_ms INTEGER NOT NULL, place INTEGER NOT NULL, item BLOB NOT NULL,
    PRIMARY KEY (history, time_ms, place, item)
) WITHOUT ROWID;
CREATE TABLE users (key TEXT PRIMARY KEY, features TEXT NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE items (key TEXT PRIMARY KEY, features TEXT NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE marks (name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID
"""
_HISTORY = """(
    SELECT group_concat(time_ms || ' ' || hex(item)) FROM (
        SELECT time_ms, item FROM events
        WHERE history = (SELECT id FROM histories WHERE user = ?1 AND behaviour = ? AND expires_ms > ?2) AND time_ms < ?
            AND time_ms >= ?
        ORDER BY time_ms DESC, place DESC, item DESC LIMIT ?
    )
)"""
_ITEMS = """
SELECT '{' || group_concat('"' || items.key || '":' || features) || '}'
FROM json_each(?) AS wanted CROSS JOIN items ON items.key = wanted.value WHERE expires_ms > ?
"""
_SWEEP_EVERY_S, _SWEPT = 1.0, 200
"""How often writing looks for expired records, and at how many of each table."""
_REMEMBERED = 200_000


class EmbeddedStore(FeatureStore):
    """Keeps everything in one directory, for one process (:class:`Database` says what survives what).

    Whose requests were fetched (:meth:`users_of`) is kept in memory alone, of the last 200,000.

    Args:
        path: The directory; made if it does not exist.
        bounds: Events kept (:class:`FeatureStore`).
        ttl_s: What has not been written for so long is forgotten.

    Raises:
        StoreError: Another process holds the directory, it is damaged, of another version, or cannot be written.
    """

    def __init__(self, path: Path, bounds: Mapping[str, int], *, ttl_s: float = 90 * 86_400.0) -> None:
        super().__init__(bounds)
        self._ttl_ms = round(1000 * ttl_s)
        self._database = Database(path, _VERSION, _SCHEMA)
        self.accounts = EmbeddedAccounts(self._database)
        self._users_of: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._swept_at = time.monotonic()
        self._swept: dict[str, int | str] = {"histories": 0, "users": "", "items": ""}

    def fetch(self, lookups: Sequence[Lookup]) -> list[Fetched]:
        """The answers to several lookups."""
        self._remember(lookups)
        now = _now_ms()
        with self._database.reading() as database:
            items = _items(database, {item for lookup in lookups for item in lookup.items}, now)
            return [
                Fetched(self._user(database, lookup, now), [items.get(item) for item in lookup.items])
                for lookup in lookups
            ]

    def append(self, events: Sequence[HistoryEvent]) -> None:
        """Add events to histories: all of them or none."""
        check_events(events)
        histories: defaultdict[tuple[str, str], list[HistoryEvent]] = defaultdict(list)
        for event in events:
            histories[event.user, event.behaviour].append(event)
        with self._database.writing() as database:
            now = _now_ms()
            for (user, behaviour), added in histories.items():
                self._extend(database, user, behaviour, added, now)
            self._sweep(database, now)

    def put_users(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw features of users."""
        self._put("users", values)

    def put_items(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Set raw dynamic features of items."""
        self._put("items", values)

    def users_of(self, request_ids: Sequence[str]) -> list[str | None]:
        """Whose requests these were."""
        return [self._users_of.get(request_id) for request_id in request_ids]

    def mark(self, name: str, value: str, *, anew: bool = True) -> bool:
        """Remember a note for good."""
        statement = "INSERT OR REPLACE INTO marks (value, name) VALUES (?, ?)"
        if not anew:
            statement = "UPDATE marks SET value = ? WHERE name = ?"
        with self._database.writing() as database:
            return database.execute(statement, (as_bytes(value), as_bytes(name))).rowcount > 0

    def marked(self, name: str) -> str | None:
        """The note of a name."""
        with self._database.reading() as database:
            found = database.execute("SELECT value FROM marks WHERE name = ?", (as_bytes(name),)).fetchone()
        return None if found is None else as_text(found[0])

    def ping(self) -> None:
        """See that the store answers."""
        with self._database.reading() as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def close(self) -> None:
        """Let go of the directory."""
        self._database.close()

    def _remember(self, lookups: Sequence[Lookup]) -> None:
        with self._lock:
            for lookup in lookups:
                if lookup.request_id is not None:
                    self._users_of[lookup.request_id] = lookup.user
                    self._users_of.move_to_end(lookup.request_id)
            while len(self._users_of) > _REMEMBERED:
                self._users_of.popitem(last=False)

    def _user(self, database: sqlite3.Connection, lookup: Lookup, now: int) -> UserRecord:
        """What is known of a user, read as one row.

        Python lets other threads go first after each row of SQLite, and a busy one does not come back for some
        milliseconds.
        """
        given: list[Any] = [_spelt(lookup.user), now]
        for behaviour, before in lookup.before.items():
            limit = lookup.limits.get(behaviour, self.bound(behaviour))
            earliest = max(-LATEST_MS, lookup.since.get(behaviour, -LATEST_MS))
            given += (behaviour, max(-LATEST_MS, min(before, LATEST_MS)), earliest, limit)
        features, *histories = database.execute(_user_query(len(lookup.before)), given).fetchone()
        return UserRecord(
            None if features is None else decode_values(features),
            {name: _history(text) for name, text in zip(lookup.before, histories, strict=True)},
        )

    def _extend(
        self, database: sqlite3.Connection, user: str, behaviour: str, added: list[HistoryEvent], now: int
    ) -> None:
        """Add events to one history, and cut it to its bound."""
        key = (_spelt(user), behaviour)
        found = database.execute(
            "SELECT id, size, expires_ms FROM histories WHERE user = ? AND behaviour = ?", key
        ).fetchone()
        if found is None:
            history = database.execute("INSERT INTO histories VALUES (NULL, ?, ?, 0, 0)", key).lastrowid
            size = 0
        else:
            history, size, expires = found
            if expires <= now:
                database.execute("DELETE FROM events WHERE history = ?", (history,))
                size = 0
        size += database.executemany(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)",
            [(history, event.time_ms, event.order, as_bytes(event.item)) for event in added],
        ).rowcount
        bound = self.bound(behaviour)
        if size > bound:
            oldest = database.execute(
                "SELECT time_ms, place, item FROM events WHERE history = ? "
                "ORDER BY time_ms, place, item LIMIT 1 OFFSET ?",
                (history, size - bound),
            ).fetchone()
            database.execute(
                "DELETE FROM events WHERE history = ? AND (time_ms, place, item) < (?, ?, ?)", (history, *oldest)
            )
            size = bound
        database.execute(
            "UPDATE histories SET size = ?, expires_ms = ? WHERE id = ?", (size, now + self._ttl_ms, history)
        )

    def _put(self, table: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        encoded = [*encode_values(values)]
        with self._database.writing() as database:
            now = _now_ms()
            database.executemany(
                f"INSERT INTO {table} (key, features, expires_ms) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET features = excluded.features, expires_ms = excluded.expires_ms",
                [(_spelt(key), features.decode(), now + self._ttl_ms) for key, features in encoded],
            )
            self._sweep(database, now)

    def _sweep(self, database: sqlite3.Connection, now: int) -> None:
        """Delete what has expired among the next few records of each table."""
        if time.monotonic() - self._swept_at < _SWEEP_EVERY_S:
            return
        self._swept_at = time.monotonic()
        for table, after in self._swept.items():
            key = "id" if table == "histories" else "key"
            (upto,) = database.execute(
                f"SELECT max({key}) FROM (SELECT {key} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?)",
                (after, _SWEPT),
            ).fetchone()
            if upto is None:  # the end: from the beginning, next time
                self._swept[table] = type(after)()
                continue
            self._swept[table] = upto
            expired = f"FROM {table} WHERE {key} > ? AND {key} <= ? AND expires_ms <= ?"
            if table == "histories":
                database.execute(f"DELETE FROM events WHERE history IN (SELECT id {expired})", (after, upto, now))
            database.execute(f"DELETE {expired}", (after, upto, now))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@cache
def _user_query(num_behaviours: int) -> str:
    features = "(SELECT features FROM users WHERE key = ?1 AND expires_ms > ?2)"
    return "SELECT " + ", ".join([features, *[_HISTORY] * num_behaviours])


def _history(text: str | None) -> History:
    """From ``time item,time item``, items in hexadecimal."""
    events = [event.split(" ") for event in text.split(",")] if text else []
    return History([as_text(bytes.fromhex(item)) for _, item in events], [int(at) for at, _ in events])


def _items(database: sqlite3.Connection, wanted: Iterable[str], now: int) -> dict[str, Mapping[str, Any]]:
    """Dynamic features of those items that have any, read as one row."""
    items = {_spelt(item): item for item in wanted}
    if not items:
        return {}
    (text,) = database.execute(_ITEMS, (msgspec.json.encode([*items]).decode(), now)).fetchone()
    return {} if text is None else {items[key]: values for key, values in _decoder.decode(text).items()}


def _spelt(key: str) -> str:
    """A key of users or items in the database: its bytes in hexadecimal, of which JSON leaves everything as it is."""
    return as_bytes(key).hex()


_decoder = msgspec.json.Decoder(dict[str, dict[str, Any]])
