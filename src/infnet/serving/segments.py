"""Segments: the files that a log is made of, and how far somebody has read them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

__all__ = [
    "Kind",
    "Position",
    "Segment",
    "advanced",
    "last_stamp",
    "locked",
    "reached",
    "read_complete",
    "segments",
    "unread",
]

Kind = Literal["served", "events", "rejected"]

Position = dict[str, int]
"""How far a log has been read: for each writer the name of the segment reached, and how many of its bytes were read.
All earlier segments of that writer have been read."""

_SUFFIX = ".ndjson"
_BLOCK = 1 << 16


class Segment(NamedTuple):
    """One file, ``<writer>-<number>.ndjson``. A writer appends to its last segment alone."""

    writer: str
    number: int
    path: Path

    @classmethod
    def named(cls, directory: Path, writer: str, number: int) -> Segment:
        """The segment of a writer and number."""
        return cls(writer, number, directory / f"{writer}-{number:012d}{_SUFFIX}")

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name


class _Stamped(msgspec.Struct):
    received_ms: int


def segments(directory: Path, writer: str | None = None) -> list[Segment]:
    """Those in a directory, each writer's in their order."""
    found = [_parsed(path) for path in directory.glob(f"*{_SUFFIX}")]
    return sorted(s for s in found if s is not None and writer in (None, s.writer))


def reached(position: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """By writer, the number of the segment reached and the bytes of it that were read."""
    found = {}
    for name, offset in position.items():
        segment = _parsed(Path(name))
        if segment is not None:
            found[segment.writer] = (segment.number, offset)
    return found


def unread(found: list[Segment], position: Mapping[str, int]) -> list[tuple[Segment, int]]:
    """Segments that may hold more than was read, and where in them to go on."""
    ends, more = reached(position), []
    for segment in found:
        number, offset = ends.get(segment.writer, (-1, 0))
        if segment.number >= number:
            more.append((segment, offset if segment.number == number else 0))
    return more


def advanced(position: Mapping[str, int], segment: Segment, end: int) -> Position:
    """The position after some bytes of a segment."""
    others = {name: at for name, at in position.items() if segment.writer not in reached({name: at})}
    return others | {segment.name: end}


def read_complete(path: Path, start: int = 0) -> bytes:
    """The complete lines from a place on: neither a line that is being written nor one that never was finished."""
    with path.open("rb") as file:
        # A writer holds the lock while it writes, and when that fails until it has taken back what it wrote.
        with locked(file.fileno(), fcntl.LOCK_SH):
            size = os.fstat(file.fileno()).st_size
        file.seek(start)
        data = file.read(max(0, size - start))
    return data[: data.rfind(b"\n") + 1]


@contextmanager
def locked(descriptor: int, how: int) -> Iterator[None]:
    """Hold the lock of an open file, ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``."""
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def last_stamp(path: Path) -> int | None:
    """``received_ms`` of the last complete line that can be read, None if there is none."""
    tail, end = b"", path.stat().st_size
    with path.open("rb") as file:
        while end > 0:
            start = max(0, end - max(_BLOCK, len(tail)))  # twice as much each time, for lines of any length
            file.seek(start)
            tail = file.read(end - start) + tail
            end = start
            lines = tail[: tail.rfind(b"\n") + 1].split(b"\n")
            for line in reversed(lines if start == 0 else lines[1:]):
                try:
                    return msgspec.json.decode(line, type=_Stamped).received_ms
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
    return None


def _parsed(path: Path) -> Segment | None:
    writer, _, number = path.name.removesuffix(_SUFFIX).rpartition("-")
    return Segment(writer, int(number), path) if writer and number.isascii() and number.isdigit() else None
