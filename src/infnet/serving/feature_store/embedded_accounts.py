"""Accounts in the database of an embedded store."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

from infnet.serving.feature_store.accounts import (
    KEPT_MS,
    SOLD_MS,
    Accounts,
    Charge,
    Sales,
    decode_sales,
    encode_sales,
)
from infnet.serving.feature_store.database import Database
from infnet.serving.feature_store.records import as_bytes, as_text

__all__ = ["EmbeddedAccounts"]

_TABLES = (
    "sales (request BLOB PRIMARY KEY, sales BLOB NOT NULL, expires_ms INTEGER NOT NULL)",
    "charged (day_ms INTEGER NOT NULL, exposure BLOB NOT NULL, PRIMARY KEY (day_ms, exposure)) WITHOUT ROWID",
    "spent (day_ms INTEGER NOT NULL, campaign BLOB NOT NULL, amount REAL NOT NULL, PRIMARY KEY (day_ms, campaign)) "
    "WITHOUT ROWID",
)
_SWEPT = 1000
"""Expired rows of a table that writing deletes at a time."""


class EmbeddedAccounts(Accounts):
    """What was charged is on disk together with the note that it was (:class:`Database` says what survives what).

    Args:
        database: Of the store; gets tables of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.writing() as writer:
            for table in _TABLES:
                writer.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            writer.execute("CREATE INDEX IF NOT EXISTS sales_expire ON sales (expires_ms)")

    def put_sales(self, sales: Mapping[str, Sales]) -> None:
        """Remember for an hour what was sold, by request."""
        now = _now_ms()
        rows = [(as_bytes(request_id), encode_sales(each), now + SOLD_MS) for request_id, each in sales.items()]
        with self._database.writing() as database:
            database.executemany("INSERT OR REPLACE INTO sales VALUES (?, ?, ?)", rows)
            _sweep(database, "sales", "expires_ms", now)

    def sales_of(self, request_ids: Sequence[str]) -> list[Sales]:
        """What requests sold."""
        now, query = _now_ms(), "SELECT sales FROM sales WHERE request = ? AND expires_ms > ?"
        with self._database.reading() as database:
            found = [database.execute(query, (as_bytes(each), now)).fetchone() for each in request_ids]
        return [decode_sales(None if row is None else row[0]) for row in found]

    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Add to what campaigns have spent: all of it or nothing."""
        is_new, oldest = [], max((each.day_ms for each in charges), default=0) - KEPT_MS
        with self._database.writing() as database:
            for exposure, campaign, day_ms, amount in charges:
                noted = database.execute("INSERT OR IGNORE INTO charged VALUES (?, ?)", (day_ms, exposure)).rowcount
                is_new.append(bool(noted))
                if noted:
                    database.execute(
                        "INSERT INTO spent VALUES (?, ?, ?) "
                        "ON CONFLICT (day_ms, campaign) DO UPDATE SET amount = amount + excluded.amount",
                        (day_ms, as_bytes(campaign), amount),
                    )
            _sweep(database, "charged", "day_ms", oldest)
            _sweep(database, "spent", "day_ms", oldest)
        return is_new

    def spent(self, days_ms: Sequence[int]) -> list[dict[str, float]]:
        """By day what each campaign has spent."""
        query = "SELECT campaign, amount FROM spent WHERE day_ms = ?"
        with self._database.reading() as database:
            found = [database.execute(query, (day_ms,)).fetchall() for day_ms in days_ms]
        return [{as_text(campaign): amount for campaign, amount in rows} for rows in found]


def _sweep(database: sqlite3.Connection, table: str, column: str, upto_ms: int) -> None:
    """Delete some of what has expired."""
    keys = {"sales": "request", "charged": "day_ms, exposure", "spent": "day_ms, campaign"}[table]
    database.execute(
        f"DELETE FROM {table} WHERE ({keys}) IN (SELECT {keys} FROM {table} WHERE {column} <= ? LIMIT ?)",
        (upto_ms, _SWEPT),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
