"""Reading the event log with Polars, while it is being written."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.serving.events import Event, Served
from infnet.serving.segments import Position, Segment, advanced, last_stamp, read_complete, segments, unread

__all__ = [
    "EVENT_SCHEMA",
    "LogRead",
    "newest_event_ids",
    "newest_served",
    "parse_lines",
    "read_events",
    "read_own_events",
    "read_segment",
]

EVENT_SCHEMA: dict[str, Any] = {
    "event_id": pl.String,
    "request_id": pl.String,
    "item_id": pl.String,
    "type": pl.String,
    "time_ms": pl.Int64,
    "value": pl.Float64,
    "user_id": pl.String,
    "received_ms": pl.Int64,
}
_OPTIONAL = ("user_id",)

_Record = TypeVar("_Record", Event, Served)


class LogRead(NamedTuple):
    """Events, and where to go on."""

    events: pl.DataFrame
    """The columns of :class:`Event`."""
    position: Position
    damaged: int
    """Lines that cannot be read; they were left out."""


def read_events(directory: Path, since: Mapping[str, int] | None = None, *, writer: str | None = None) -> LogRead:
    """What a log holds beyond a position: every writer's events, each in their order.

    Args:
        directory: Of the log.
        since: The position that an earlier call gave; the beginning if None.
        writer: Whose events; everybody's if None.
    """
    position, frames = dict(since or {}), []
    for segment, start in unread(segments(directory / "events", writer), position):
        frame = read_segment(segment, EVENT_SCHEMA, start)
        frames.append(frame)
        position = advanced(position, segment, frame["end"].item(-1) if frame.height else start)
    lines = pl.concat(frames) if frames else parse_lines(b"", EVENT_SCHEMA)
    events = lines.filter(~pl.col("is_damaged")).select(list(EVENT_SCHEMA))
    return LogRead(events, position, lines.height - events.height)


def read_own_events(directory: Path, writer: str, since: Mapping[str, int]) -> tuple[list[Event], Position]:
    """What one writer of a log has written beyond a position, and where to go on; damaged lines are left out."""
    position, events = dict(since), list[Event]()
    for segment, start in unread(segments(directory / "events", writer), position):
        data = read_complete(segment.path, start)
        events += _decoded(data.splitlines(), Event)
        position = advanced(position, segment, start + len(data))
    return events, position


def newest_event_ids(directory: Path, limit: int) -> list[str]:
    """Ids of the latest events of all writers, the latest last."""
    schema = {name: EVENT_SCHEMA[name] for name in ("event_id", "received_ms")}
    newest = parse_lines(b"", schema).select(schema.keys())
    for segment, stamp in _newest_first(directory / "events"):
        if newest.height == limit and stamp < newest["received_ms"][0]:
            break
        more = read_segment(segment, schema).filter(~pl.col("is_damaged")).select(schema.keys())
        newest = pl.concat([more, newest]).sort("received_ms", maintain_order=True).tail(limit)
    return newest["event_id"].to_list()


def newest_served(directory: Path, limit: int) -> list[Served]:
    """The latest requests of all writers, the latest last."""
    newest: list[Served] = []
    for segment, stamp in _newest_first(directory / "served"):
        if len(newest) == limit and stamp < newest[0].received_ms:
            break
        more = _decoded(read_complete(segment.path).splitlines()[-limit:], Served)
        newest = sorted([*more, *newest], key=lambda served: served.received_ms)[-limit:]
    return newest


def read_segment(segment: Segment, schema: Mapping[str, Any], start: int = 0) -> pl.DataFrame:
    """Every complete line of a segment from a place on (:func:`parse_lines`; places are those of the file), with its
    ``writer`` and ``number``."""
    frame = parse_lines(read_complete(segment.path, start), schema)
    return frame.with_columns(
        pl.col("begin", "end") + start,
        writer=pl.lit(segment.writer, dtype=pl.String),
        number=pl.lit(segment.number, dtype=pl.Int64),
    )


def parse_lines(data: bytes, schema: Mapping[str, Any]) -> pl.DataFrame:
    """One row per line: the columns of the schema, ``begin`` and ``end`` of the line, and ``is_damaged`` where it is no
    JSON or lacks a column other than ``user_id``."""
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")) + 1
    frame = _parsed(data, ends, schema)
    lacks = pl.any_horizontal(pl.col([name for name in schema if name not in _OPTIONAL]).is_null())
    return frame.with_columns(
        begin=pl.Series(np.concatenate([ends[:0], [0], ends[:-1]])[: len(ends)], dtype=pl.Int64),
        end=pl.Series(ends, dtype=pl.Int64),
        is_damaged=lacks,
    )


def _parsed(data: bytes, ends: NDArray[np.int64], schema: Mapping[str, Any]) -> pl.DataFrame:
    """As many rows as lines; a damaged line is found by halving, and is all null."""
    if not len(ends):
        return pl.DataFrame(schema=schema)
    try:
        frame = pl.read_ndjson(io.BytesIO(data), schema=schema)
        if frame.height == len(ends):
            return frame
    except pl.exceptions.PolarsError:
        pass
    if len(ends) == 1:
        return pl.DataFrame({name: [None] for name in schema}, schema=schema)
    middle = len(ends) // 2
    cut = int(ends[middle - 1])
    return pl.concat([_parsed(data[:cut], ends[:middle], schema), _parsed(data[cut:], ends[middle:] - cut, schema)])


def _newest_first(directory: Path) -> list[tuple[Segment, int]]:
    """Segments and when their last record was taken."""
    stamps = ((segment, last_stamp(segment.path)) for segment in segments(directory))
    known = [(segment, stamp) for segment, stamp in stamps if stamp is not None]
    return sorted(known, key=lambda pair: (pair[1], pair[0].number), reverse=True)


def _decoded(lines: list[bytes], kind: type[_Record]) -> Iterator[_Record]:
    decoder = msgspec.json.Decoder(kind)
    for line in lines:
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
