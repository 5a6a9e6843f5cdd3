"""The event log: requests as they were served and what happened afterwards, appended to files that anybody can read."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from infnet.errors import SpecError, StoreError
from infnet.serving.clock import Clock
from infnet.serving.events import Event, Served
from infnet.serving.log_reader import newest_event_ids, newest_served
from infnet.serving.segment_writer import Fsync, SegmentWriter
from infnet.serving.segments import Kind, Position, last_stamp, segments

__all__ = ["EventLog"]

_log = structlog.get_logger(__name__)
_KINDS: tuple[Kind, ...] = ("served", "events", "rejected")
_SYNC_EVERY_S = 1.0
_LONGEST_RAW = 16_384
"""Of what is rejected, so many bytes are kept."""


class EventLog:
    """Writes a directory of newline-delimited JSON: ``served/``, ``events/`` and ``rejected/``, each in segments named
    ``<writer>-<number>.ndjson``. Safe to use from several threads; other processes have other writers.

    What was appended when a call returns survives the death of the process (kill -9). Of the machine's, it survives:
    with ``fsync="always"`` everything (calls at the same time share one fsync), with ``"interval"`` all but the last
    second, with ``"never"`` what the system happened to have written. A call that fails has appended nothing; the next
    one tries again.

    Every record gets the time of its arrival, ``received_ms``, which never falls within one writer's records, also
    when the clock does: it then stands still until the clock has caught up.

    Args:
        directory: Made if it does not exist.
        fsync: See above.
        segment_mb: Size after which the next segment begins; it also does when one is an hour old.
        writer: Name of the writer; by default one after the host, which no other process uses at the moment.
        clock: Tells when records arrive; the machine's by default.

    Attributes:
        directory, writer: Of this log.
        num_torn: Lines left unfinished by an earlier life of this writer, which were cut off.

    Raises:
        SpecError: The writer's name cannot be part of a file's.
        StoreError: The directory cannot be written, or another process has this writer.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: Fsync = "interval",
        segment_mb: int = 64,
        writer: str | None = None,
        max_age_s: float = 3600.0,
        clock: Clock | None = None,
    ) -> None:
        self.directory, self._clock = directory, clock or Clock()
        self._clock_lock = threading.Lock()
        try:
            self._claim, self.writer = _claimed(directory / "writers", writer)
            self._streams = {
                kind: SegmentWriter(
                    directory / kind, self.writer, limit=segment_mb << 20, max_age_s=max_age_s, fsync=fsync
                )
                for kind in _KINDS
            }
            self._last_ms = max(self._stamps(), default=0)
        except OSError as error:
            raise StoreError(
                f"{directory}: cannot hold an event log ({error.strerror}); give another directory or mend its rights"
            ) from error
        self.num_torn = sum(stream.num_torn for stream in self._streams.values())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sync, name="event-log-fsync", daemon=True)
        if fsync == "interval":
            self._thread.start()

    @property
    def is_well(self) -> bool:
        """Whether the last writes succeeded."""
        return all(stream.is_well for stream in self._streams.values())

    def append_served(self, served: Served) -> None:
        """Log a request that was answered.

        Raises:
            StoreError: The disk does not take it.
        """
        self._append("served", [served])

    def append_events(self, events: Sequence[Event]) -> None:
        """Log events, all or none.

        Raises:
            StoreError: The disk does not take them.
        """
        if events:
            self._append("events", events)

    def reject(self, raw: bytes, reason: str) -> None:
        """Keep something that is no event, its first 16 KiB, with the reason.

        Raises:
            StoreError: The disk does not take it.
        """
        text = raw[:_LONGEST_RAW].decode(errors="backslashreplace")
        self._streams["rejected"].append(
            lambda: _line({"received_ms": self._now(), "reason": reason, "num_bytes": len(raw), "raw": text})
        )

    def position(self) -> Position:
        """The end of this writer's events."""
        return self._streams["events"].position()

    def recent_event_ids(self, limit: int) -> list[str]:
        """Ids of the latest events of all writers, the latest last."""
        return newest_event_ids(self.directory, limit)

    def recent_served(self, limit: int) -> list[Served]:
        """The latest requests of all writers, the latest last."""
        return newest_served(self.directory, limit)

    def close(self) -> None:
        """Bring everything to the disk (unless told never to), and let go of the writer's name."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            for stream in self._streams.values():
                stream.close()
        finally:
            if self._claim >= 0:
                os.close(self._claim)
                self._claim = -1

    def _append(self, kind: Kind, records: Sequence[Event | Served]) -> None:
        def encode() -> bytes:
            now = self._now()
            return b"".join([_line(msgspec.structs.replace(record, received_ms=now)) for record in records])

        self._streams[kind].append(encode)

    def _now(self) -> int:
        with self._clock_lock:
            self._last_ms = max(self._last_ms, self._clock.now_ms())
            return self._last_ms

    def _stamps(self) -> list[int]:
        """When the last records of each kind were taken, those that can be read."""
        found = []
        for kind in _KINDS:
            for segment in reversed(segments(self.directory / kind, self.writer)):
                stamp = last_stamp(segment.path)
                if stamp is not None:
                    found.append(stamp)
                    break
        return found

    def _sync(self) -> None:
        while not self._stop.wait(_SYNC_EVERY_S):
            for stream in self._streams.values():
                try:
                    stream.sync()
                except StoreError as error:
                    _log.error("event_log_not_on_disk", reason=str(error))


def _line(record: Any) -> bytes:
    return msgspec.json.encode(record) + b"\n"


def _claimed(directory: Path, writer: str | None) -> tuple[int, str]:
    """The descriptor that holds a writer's name, and the name: the given one, or the first free one of this host."""
    if writer is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", writer):
        raise SpecError(f"writer '{writer}' cannot be part of a file's name; use letters, digits, '_', '.' and '-'")
    directory.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^A-Za-z0-9_.]+", "_", socket.gethostname()).lstrip(".") or "host"
    for name in [writer] if writer is not None else (f"{host}-{number}" for number in itertools.count()):
        claim = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(claim)
        else:
            return claim, name
    raise StoreError(
        f"{directory.parent}: another process writes as '{writer}'; stop it, or give another writer's name"
    )
