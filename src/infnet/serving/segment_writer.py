"""Appending to a log's segments: whole lines, acknowledged, or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from infnet.errors import StoreError
from infnet.serving.segments import Position, Segment, locked, segments

__all__ = ["Fsync", "SegmentWriter"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 1 << 16

Fsync = Literal["always", "interval", "never"]


class _Group:
    """Records that one fsync brings to the disk."""

    def __init__(self) -> None:
        self.is_empty = True
        self.error: OSError | None = None


class SegmentWriter:
    """The writer of one kind of record; safe to use from several threads.

    Every life of a writer begins a segment of its own, with its first record, and begins another when that one is
    full or old. Numbers rise with time, so that they do not begin anew in a directory that was emptied.

    Args:
        directory: Of the segments; made if it does not exist.
        writer: Whose segments these are; nobody else may append to them.
        limit: Bytes after which the next segment begins.
        max_age_s: Seconds after which it begins, when something is to be written.
        fsync: When the disk is made to take what is written (:class:`EventLog`).

    Attributes:
        num_torn: Unfinished lines of an earlier life that were cut off.
        is_well: Whether the last write, and the last fsync, succeeded.

    Raises:
        StoreError: From every method that writes, if the disk does not take it.
    """

    def __init__(self, directory: Path, writer: str, *, limit: int, max_age_s: float, fsync: Fsync) -> None:
        self._directory, self._writer, self._limit, self._max_age_s = directory, writer, limit, max_age_s
        self._fsync = fsync
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._file = -1
        self._size, self._opened = 0, 0.0
        self._unsynced = _Group()
        self._is_closed = False
        self.is_well, self.num_torn = True, 0
        directory.mkdir(parents=True, exist_ok=True)
        self._segment = max(segments(directory, writer), default=None)
        if self._segment is not None:
            self.num_torn = _cut_torn(self._segment.path)
            self._size = self._segment.path.stat().st_size

    def append(self, encode: Callable[[], bytes]) -> None:
        """Write lines.

        Args:
            encode: Gives them, ended by newlines, when it is their turn.
        """
        with self._lock:
            if self._is_closed:
                raise StoreError("the event log is closed")
            lines = encode()
            try:
                self._begin_if_due()
                self._write(lines)
            except OSError as error:
                self.is_well = False
                raise self._explained(error) from error
            self.is_well = True
            group = self._unsynced
            group.is_empty = False
        if self._fsync == "always":
            self._bring_to_disk(group)

    def position(self) -> Position:
        """The end of what is written."""
        with self._lock:
            return {} if self._segment is None else {self._segment.name: self._size}

    def sync(self) -> None:
        """Bring what is written to the disk."""
        with self._lock:
            group = self._unsynced
        if not group.is_empty:
            self._bring_to_disk(group)

    def close(self) -> None:
        """End the segment."""
        with self._lock:
            self._is_closed = True
            try:
                self._end()
            except OSError as error:
                raise self._explained(error) from error

    def _begin_if_due(self) -> None:
        is_old = time.monotonic() - self._opened >= self._max_age_s
        if self._file >= 0 and self._size < self._limit and not (is_old and self._size):
            return
        self._end()
        number = max(time.time_ns() // 1_000_000_000, 0 if self._segment is None else self._segment.number + 1)
        segment = Segment.named(self._directory, self._writer, number)
        self._file = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._segment, self._size, self._opened = segment, 0, time.monotonic()
        if self._fsync != "never":
            _sync_directory(self._directory)

    def _write(self, lines: bytes) -> None:
        """All of it or, after a failure, nothing; readers wait meanwhile."""
        with locked(self._file, fcntl.LOCK_EX):
            try:
                left = memoryview(lines)
                while left:
                    left = left[os.write(self._file, left) :]
            except BaseException:
                try:
                    os.ftruncate(self._file, self._size)
                except OSError:
                    self._end()  # nothing may follow what could not be taken back
                raise
        self._size += len(lines)

    def _bring_to_disk(self, group: _Group) -> None:
        """One fsync for all records of a group; those written meanwhile are the next one's."""
        with self._sync_lock:
            with self._lock:
                is_mine = group is self._unsynced
                if is_mine:
                    self._unsynced = _Group()
                    file = os.dup(self._file)  # the segment may end meanwhile
            if is_mine:
                try:
                    os.fsync(file)
                except OSError as error:
                    with self._lock:
                        group.error, self.is_well = error, False
                        self._leave(error)
                finally:
                    os.close(file)
        if group.error is not None:
            raise self._explained(group.error) from group.error

    def _end(self) -> None:
        failure = None
        if self._fsync != "never" and not self._unsynced.is_empty:
            try:
                os.fsync(self._file)
            except OSError as error:
                failure = error
        self._leave(failure)
        if failure is not None:
            raise failure

    def _leave(self, failure: OSError | None) -> None:
        """Go on in another segment; after a failure the system forgets which pages of this one were not written."""
        self._unsynced.error, self._unsynced = failure, _Group()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _explained(self, error: OSError) -> StoreError:
        if error.errno in _FULL:
            return StoreError(f"{self._directory}: the disk is full; make room, and the event log goes on by itself")
        return StoreError(f"{self._directory}: the event log cannot be written: {error.strerror or error}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn(path: Path) -> int:
    """Cut off what follows the last newline; 1 if there was anything."""
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end == size:
            return 0
        with locked(file.fileno(), fcntl.LOCK_EX):
            file.truncate(end)
    return 1
