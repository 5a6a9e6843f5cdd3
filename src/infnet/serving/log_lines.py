"""The lines of an event log that a label join looks at: those to decide about, and those that bear on them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from infnet.serving.events import IMPRESSION
from infnet.serving.log_reader import EVENT_SCHEMA, parse_lines, read_segment
from infnet.serving.segments import Position, Segment, advanced, last_stamp, reached, segments, unread

__all__ = ["ORDER", "LogLines", "read_lines"]

ORDER = ("received_ms", "writer", "number", "begin")
"""What came first, of several writers."""


class LogLines(NamedTuple):
    """Lines of the event log, each with ``is_new`` if it was not decided before, ``is_passed`` if it is decided now or
    was before, and ``is_copy`` if an earlier one has its event id."""

    known: pl.DataFrame
    """Those that can be read."""
    damaged: int
    """Those that are passed now and cannot be read."""
    decided: Position
    """The end of those passed."""
    read: Position
    """The end of the log."""
    since_ms: int
    """Nothing received earlier was looked at."""

    @property
    def num_passed(self) -> int:
        """Lines that get their fate now."""
        return self.known.select((pl.col("is_new") & pl.col("is_passed")).sum()).item() + self.damaged

    @property
    def impressions(self) -> pl.DataFrame:
        """Those that are decided now, by arrival."""
        chosen = pl.col("is_new") & pl.col("is_passed") & ~pl.col("is_copy") & (pl.col("type") == IMPRESSION)
        return self.known.filter(chosen)

    @property
    def pending(self) -> pl.DataFrame:
        """Impressions that are decided later."""
        return self.known.filter(~pl.col("is_passed") & ~pl.col("is_copy") & (pl.col("type") == IMPRESSION))


def read_lines(log: Path, decided: Position, *, due_ms: int, reach_ms: int, looks_ahead: bool) -> LogLines:
    """Read what follows a position, and before it as far as it may matter.

    Args:
        log: Directory of the log.
        decided: The position.
        due_ms: Each writer's lines are passed up to the first that was received later.
        reach_ms: How much older than the oldest line after the position a line may be and matter.
        looks_ahead: Whether lines that are not passed yet matter by themselves; if not, nothing before the position is
            read as long as no line is passed.
    """
    found = segments(log / "events")
    read, frames = dict(decided), [_EMPTY]
    for segment, start in unread(found, decided):
        frame = read_segment(segment, EVENT_SCHEMA, start)
        frames.append(frame)
        read = advanced(read, segment, frame["end"].item(-1) if frame.height else start)
    new = pl.concat(frames).with_columns(
        is_new=pl.lit(True),
        # What cannot be read goes with what is before it.
        is_passed=((pl.col("received_ms") <= due_ms) | pl.col("is_damaged")).cast(pl.Int8).cum_min().over("writer")
        == 1,
    )
    passed, after = new.filter("is_passed"), dict(decided)
    for writer, number, end in passed.group_by("writer").agg(pl.col("number", "end").last()).iter_rows():
        after = advanced(after, Segment.named(log / "events", writer, number), end)

    oldest = new.filter(~pl.col("is_damaged"))["received_ms"].cast(pl.Int64).to_numpy().min(initial=due_ms)
    since_ms = int(oldest) - reach_ms
    before = _before(found, decided, since_ms) if (new if looks_ahead else passed).height else []
    old = [
        read_segment(segment, EVENT_SCHEMA).filter(pl.col("end") <= end, pl.col("received_ms") >= since_ms)
        for segment, end in before
    ]
    lines = pl.concat([*(frame.with_columns(is_new=False, is_passed=True) for frame in old), new])
    known = lines.filter(~pl.col("is_damaged")).sort("is_new", *ORDER)
    known = known.with_columns(is_copy=~pl.col("event_id").is_first_distinct())
    return LogLines(known, int(passed["is_damaged"].sum()), after, read, since_ms)


_EMPTY = parse_lines(b"", EVENT_SCHEMA).with_columns(
    writer=pl.lit(None, dtype=pl.String), number=pl.lit(None, dtype=pl.Int64)
)


def _before(found: list[Segment], decided: Position, since_ms: int) -> list[tuple[Segment, int]]:
    """Segments before a position that may hold lines received since a time, and where in them it is."""
    ends, chosen, exhausted = reached(decided), list[tuple[Segment, int]](), set[str]()
    for segment in reversed(found):
        number, end = ends.get(segment.writer, (-1, 0))
        if segment.writer in exhausted or segment.number > number:
            continue
        stamp = last_stamp(segment.path)
        if stamp is None or stamp >= since_ms:
            chosen.append((segment, end if segment.number == number else segment.path.stat().st_size))
        else:
            exhausted.add(segment.writer)
    return chosen
