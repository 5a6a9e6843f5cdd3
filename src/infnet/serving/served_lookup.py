"""Finding requests in the log of what was served, without reading more of it than those."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from infnet.schema import DatasetSpec
from infnet.serving.log_reader import parse_lines, read_segment
from infnet.serving.segments import Segment, last_stamp, segments

__all__ = ["ServedLookup"]

_KEYS = {"request_id": pl.String, "time_ms": pl.Int64}
_AT_A_TIME = 32 << 20


class _Raw(msgspec.Struct):
    """The parts of a served request whose values stay the text they are."""

    context: msgspec.Raw
    user: msgspec.Raw
    values: dict[str, list[msgspec.Raw]]


class ServedLookup:
    """Requests of a log by their ids.

    A request id that was served twice, such as after a retry, means the later answer. Where the lines of a segment are
    is kept in a directory once the segment is finished; what is there can be removed at any time.

    Args:
        log: Directory of the log.
        places: Directory for what is known about finished segments.
        spec: Its behaviours and tasks are what is read.
    """

    def __init__(self, log: Path, places: Path, spec: DatasetSpec) -> None:
        self._log, self._places, self._spec = log / "served", places, spec
        self._schema: dict[str, Any] = {
            "request_id": pl.String,
            "user_id": pl.String,
            "time_ms": pl.Int64,
            "version": pl.String,
            "items": pl.List(pl.String),
            "predictions": pl.Struct({task.name: pl.List(pl.Float64) for task in spec.tasks}),
        }
        history = pl.Struct({"items": pl.List(pl.String), "times": pl.List(pl.Int64)})
        if spec.behaviours:
            self._schema["histories"] = pl.Struct({behaviour.name: history for behaviour in spec.behaviours})

    def find(self, wanted: pl.DataFrame, since_ms: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """What was served of some items to some requests, and those requests, as samples have them.

        Args:
            wanted: ``request_id`` and ``item_id``, distinct.
            since_ms: Nothing is wanted that was logged before.

        Returns:
            ``request_id, item_id, user_id, time_ms, values, predicted_<task>.., version`` of those that were delivered,
            and the requests.
        """
        delivered, requests = [self._delivered(self._typed(b""), [], wanted)], [self._requests(self._typed(b""), [])]
        for lines in self._lines(wanted.select("request_id").unique(), since_ms):
            raw = [_raw(line) for line in lines]
            known = [line for line, each in zip(lines, raw, strict=True) if each is not None]
            typed = self._typed(b"".join(known))
            decoded = [each for each in raw if each is not None]
            delivered.append(self._delivered(typed, decoded, wanted))
            requests.append(self._requests(typed, decoded))
        return pl.concat(delivered), pl.concat(requests)

    def _lines(self, request_ids: pl.DataFrame, since_ms: int) -> Iterator[list[bytes]]:
        """The lines of the latest answers, some megabytes at a time."""
        found = {segment.name: segment for segment in self._segments(since_ms)}
        last = {segment.writer: segment.name for segment in found.values()}
        places = [
            self._places_in(segment, is_finished=last[segment.writer] != name)
            .join(request_ids, on="request_id", how="semi")
            .with_columns(segment=pl.lit(name))
            for name, segment in found.items()
        ]
        self._forget(set(found))
        if not places:
            return
        latest = (
            pl.concat(places)
            .sort("time_ms", "segment", "begin")
            .unique("request_id", keep="last")
            .sort("segment", "begin")
        )
        for (name,), chosen in latest.group_by("segment", maintain_order=True):
            lines, size = list[bytes](), 0
            with found[str(name)].path.open("rb") as file:
                for begin, end in chosen.select("begin", "end").iter_rows():
                    lines.append(os.pread(file.fileno(), end - begin, begin))
                    size += end - begin
                    if size >= _AT_A_TIME:
                        yield lines
                        lines, size = [], 0
            yield lines

    def _segments(self, since_ms: int) -> list[Segment]:
        found, exhausted = [], set()
        for segment in reversed(segments(self._log)):
            if segment.writer in exhausted:
                continue
            stamp = last_stamp(segment.path)
            if stamp is not None and stamp < since_ms:
                exhausted.add(segment.writer)
            else:
                found.append(segment)
        return found[::-1]

    def _places_in(self, segment: Segment, *, is_finished: bool) -> pl.DataFrame:
        path = self._places / f"{segment.name}.parquet"
        if path.exists():
            try:
                return pl.read_parquet(path)
            except pl.exceptions.PolarsError:
                path.unlink()
        lines = read_segment(segment, _KEYS)
        places = lines.filter(~pl.col("is_damaged")).select("request_id", "time_ms", "begin", "end")
        if is_finished:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".tmp")
            places.write_parquet(half)
            half.replace(path)
        return places

    def _forget(self, needed: set[str]) -> None:
        for path in self._places.glob("*"):
            if path.name.removesuffix(".parquet") not in needed:
                path.unlink()

    def _typed(self, lines: bytes) -> pl.DataFrame:
        return parse_lines(lines, self._schema).with_row_index("row")

    def _delivered(self, typed: pl.DataFrame, raw: list[_Raw], wanted: pl.DataFrame) -> pl.DataFrame:
        size = pl.col("items").list.len()
        predictions = []
        for task in self._spec.tasks:
            column = pl.col("predictions").struct.field(task.name).cast(pl.List(pl.Float32))
            unknown = pl.lit(None, dtype=pl.Float32).repeat_by(size)
            predictions.append(
                pl.when(column.list.len() == size).then(column).otherwise(unknown).alias(f"predicted_{task.name}")
            )
        lists = [pl.col("items").alias("item_id"), pl.int_ranges(size).alias("place"), *predictions]
        found = (
            typed.filter(~pl.col("is_damaged"))
            .select("row", "request_id", "user_id", "time_ms", "version", *lists)
            .explode("item_id", "place", *(f"predicted_{task.name}" for task in self._spec.tasks))
            .join(wanted, on=["request_id", "item_id"], how="semi")
            .unique(["request_id", "item_id"], keep="first", maintain_order=True)
        )
        texts = (
            _values(raw[row], places)
            for row, places in found.group_by("row", maintain_order=True).agg("place").iter_rows()
        )
        return found.select(
            "request_id",
            "item_id",
            "user_id",
            "time_ms",
            pl.Series("values", [text for some in texts for text in some], dtype=pl.String),
            *(f"predicted_{task.name}" for task in self._spec.tasks),
            "version",
        )

    def _requests(self, typed: pl.DataFrame, raw: list[_Raw]) -> pl.DataFrame:
        user = [None if bytes(each.user) == b"null" else bytes(each.user).decode() for each in raw]
        histories = []
        for behaviour in self._spec.behaviours:
            history = pl.col("histories").struct.field(behaviour.name)
            for part, kind in (("items", pl.String()), ("times", pl.Int64())):
                known = history.struct.field(part).fill_null(pl.lit([], dtype=pl.List(kind)))
                histories.append(known.alias(f"{behaviour.name}_{part}"))
        return (
            typed.with_columns(
                pl.Series("context", [bytes(each.context).decode() for each in raw], dtype=pl.String),
                pl.Series("user", user, dtype=pl.String),
            )
            .filter(~pl.col("is_damaged"))
            .select("request_id", "user_id", "time_ms", "version", "context", "user", *histories)
        )


def _raw(line: bytes) -> _Raw | None:
    try:
        return msgspec.json.decode(line, type=_Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _values(raw: _Raw, places: list[int]) -> list[str]:
    """JSON of each item's values."""
    columns = [(msgspec.json.encode(name) + b":", column) for name, column in raw.values.items()]
    texts = (
        b",".join(key + bytes(column[place]) for key, column in columns if place < len(column)) for place in places
    )
    return [f"{{{text.decode()}}}" for text in texts]
