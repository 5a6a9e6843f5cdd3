"""A SQLite database that one process holds: its lock, its connections, and what its failures mean."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from infnet.errors import StoreError

__all__ = ["Database"]

_FILE, _LOCK = "features.sqlite", "lock"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _Reader:
    """A thread's connection, closed when the thread ends: left to itself, it would wait for the garbage collector."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class Database:
    """Reads from any thread, each over a connection of its own; one write at a time. Readers and writers do not wait
    for each other (write-ahead log).

    What was written survives the death of the process. A machine that loses power may lose the last writes, but not
    the database (``synchronous = NORMAL``).

    Args:
        directory: Made if it does not exist.
        version: Of the schema.
        schema: Statements that make an empty database.

    Raises:
        StoreError: Another process holds it, it is damaged, of another version, or cannot be written.
    """

    def __init__(self, directory: Path, version: int, schema: str) -> None:
        self._directory, self._file = directory, directory / _FILE
        self._readers: WeakSet[_Reader] = WeakSet()
        self._of_thread = threading.local()
        self._writer: sqlite3.Connection | None = None
        self._write_lock = threading.Lock()
        self._is_closed = False
        self._lock: int | None = _locked(directory)
        try:
            with self._explained():
                self._writer = self._connect()
                self._prepare(self._writer, version, schema)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from."""
        with self._explained():
            reader: _Reader | None = getattr(self._of_thread, "reader", None)
            if reader is None:
                reader = self._of_thread.reader = _Reader(self._connect())
                self._readers.add(reader)
            yield reader.connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection to write with: all of it happens, or, after an exception, nothing."""
        with self._write_lock, self._explained():
            connection = self._writer
            if connection is None:
                raise self._closed()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # not after every failure
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Let go of the file; other threads should have come to an end."""
        with self._write_lock:
            self._is_closed = True
            for connection in (*(reader.connection for reader in self._readers), self._writer):
                if connection is not None:
                    with suppress(sqlite3.Error):
                        connection.close()
            self._writer = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _connect(self) -> sqlite3.Connection:
        if self._is_closed:
            raise self._closed()
        # Statements commit by themselves; close() is called from one thread for all.
        connection = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = WAL", "synchronous = NORMAL", "mmap_size = 268435456"):
            connection.execute(f"PRAGMA {setting}")
        return connection

    def _prepare(self, writer: sqlite3.Connection, version: int, schema: str) -> None:
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        if found not in (0, version):
            raise StoreError(
                f"{self._file}: is a feature store of format {found}, this package reads format {version}; "
                "give another directory, or install the version that wrote it"
            )
        if not found:
            writer.executescript(f"BEGIN; {schema}; PRAGMA user_version = {version}; COMMIT")
        writer.execute("SELECT count(*) FROM sqlite_master").fetchone()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise (self._closed() if self._is_closed else StoreError(f"{self._file}: {self._reason(error)}")) from error

    def _closed(self) -> StoreError:
        return StoreError(f"{self._directory}: the feature store is closed; open it again")

    def _reason(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            return (
                f"the feature store is damaged ({error}); move {self._directory} away and start again: "
                "histories come back from the bundle and the event log"
            )
        if code == sqlite3.SQLITE_FULL:
            return "the disk is full; make room, and it goes on by itself"
        return f"the feature store fails ({error}); see that the directory can be read and written"


def _locked(directory: Path) -> int:
    """A descriptor that holds the directory's lock as long as it is open."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{directory}: cannot hold a feature store ({error.strerror}); give another directory"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        raise StoreError(
            f"{directory}: process {holder} holds this feature store, which is for one process; "
            "stop that one, give another directory, or use Redis (--store redis://..)"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
