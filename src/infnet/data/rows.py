"""The log's rows on their way to the splits: joined with entity indices, cut by users, sorted, written as arrays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.arrays import ArrayWriter
from infnet.data.entities import Entities
from infnet.data.histories import LogEvents, build_streams, is_repeated
from infnet.data.log import Log, event_column, label_column, raw_column, value_column
from infnet.data.seeds import Seeds
from infnet.data.sources.files import ROW, SIGNATURE
from infnet.data.splits import SplitRule
from infnet.errors import DataError
from infnet.features import Clock, Feature
from infnet.schema import DatasetSpec

__all__ = ["Partitions", "WrittenRows", "partition_rows", "write_rows"]

_BATCH_ROWS, _HELD_ROWS = 250_000, 2_000_000


@dataclass(frozen=True)
class Partitions:
    """The log's rows in files of whole users each, in the order of their indices."""

    directory: Path
    users: list[tuple[int, int]]
    """First and last user index of each."""
    num_rows: int
    features: tuple[Feature, ...]
    """Context and candidate features, whose values the files hold."""

    def scan(self) -> pl.LazyFrame:
        """All rows, in no order."""
        return pl.scan_parquet(self.directory / "**/*.parquet", hive_partitioning=False)

    def ordinary_times(self) -> NDArray[np.int64]:
        """Times of all rows that are in no extra split."""
        times = self.scan().filter(pl.col("extra") == 0).select("time").collect(engine="streaming")
        return times.to_series().to_numpy()

    def read(self, index: int) -> pl.DataFrame | None:
        """One file's rows, sorted by user, time and order in the log."""
        directory = self.directory / f"part={index}"
        if not directory.exists():
            return None
        return pl.read_parquet(directory / "*.parquet", hive_partitioning=False).sort("user", "time", ROW)


def partition_rows(
    spec: DatasetSpec, log: Log, users: Entities, items: Entities, directory: Path, *, rows_per_partition: int
) -> Partitions:
    """Join the log with the entities' indices and cut it by ranges of users. Rows of unknown entities are dropped."""
    counts = log.rows.group_by(pl.col("user").alias("key")).agg(pl.len().alias("rows"))
    counted = users.keys.join(counts.collect(engine="streaming"), on="key", how="left", maintain_order="left")
    before = counted["rows"].fill_null(0).cum_sum().shift(1, fill_value=0)
    cut = counted.select("key", "index", part=(before // rows_per_partition).cast(pl.Int32))
    # Numbers that no user got are closed up, so that every file has an index and the files follow one another.
    cut = cut.with_columns(pl.col("part").rle_id().cast(pl.Int32))
    ranges = cut.group_by("part").agg(first=pl.col("index").min(), last=pl.col("index").max()).sort("part")
    dated = tuple(f for f in spec.features if f.reads == "item" and f not in log.request_features)
    item_keys = items.keys
    if items.request_values is not None:
        item_keys = item_keys.join(items.request_values, on="index", how="left", maintain_order="left")
    types = dict(item_keys.schema)
    clock = Clock(pl.col("time"), spec.timezone)
    joined = (
        log.rows.join(cut.lazy().rename({"index": "user index"}), left_on="user", right_on="key", how="inner")
        .join(item_keys.lazy().rename({"index": "item index"}), left_on="item", right_on="key", how="inner")
        .select(
            *("part", ROW, SIGNATURE, "time", "extra"),
            pl.col("user index").alias("user"),
            pl.col("item index").alias("item"),
            *(event_column(b.name) for b in spec.behaviours),
            *(label_column(t.name) for t in spec.tasks),
            *(value_column(f.name) for f in log.request_features),
            *(
                f.read(pl.col(raw_column(f.source)), types[raw_column(f.source)], clock).alias(value_column(f.name))
                for f in dated
            ),
        )
    )
    _write_partitions(joined, directory)
    if not directory.exists():
        raise DataError(
            f"{log.table.files[0]}: no row is left: every user or item of the log is missing from its table"
        )
    partitions = Partitions(
        directory, list(ranges.select("first", "last").iter_rows()), 0, (*log.request_features, *dated)
    )
    num_rows = partitions.scan().select(pl.len()).collect(engine="streaming").item()
    return Partitions(directory, partitions.users, num_rows, partitions.features)


def _write_partitions(rows: pl.LazyFrame, directory: Path) -> None:
    """Write rows into one directory per value of ``part``, a few million at a time.

    Polars' own partitioned sink does the same, but is marked unstable and took twice as long.
    """
    held: list[pl.DataFrame] = []
    num_held = num_flushed = 0
    for batch in rows.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=False, engine="streaming"):
        held.append(batch)
        num_held += batch.height
        if num_held >= _HELD_ROWS:
            _flush(held, directory, num_flushed)
            held, num_held, num_flushed = [], 0, num_flushed + 1
    _flush(held, directory, num_flushed)


def _flush(held: list[pl.DataFrame], directory: Path, number: int) -> None:
    if not any(batch.height for batch in held):
        return
    for (part,), rows in pl.concat(held).partition_by("part", include_key=False, as_dict=True).items():
        path = directory / f"part={part}" / f"{number}.parquet"
        rows.write_parquet(path, compression="lz4", statistics=False, mkdir=True)


@dataclass(frozen=True)
class WrittenRows:
    """What :func:`write_rows` leaves for the steps after it."""

    split_rows: dict[str, int]
    num_events: dict[str, int]
    repeated: int
    values: dict[str, list[Path]]
    """Per split, Parquet files with the value columns of its rows, in order."""


def write_rows(
    spec: DatasetSpec,
    partitions: Partitions,
    rule: SplitRule,
    seeds: Seeds,
    *,
    num_users: int,
    out: Path,
    staging: Path,
    progress: Callable[[float], None],
) -> WrittenRows:
    """Write every split's rows and every behaviour's events, partition by partition."""
    staging.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {name: _SplitWriter(stack, out / name, len(spec.tasks), len(spec.behaviours)) for name in rule.names}
        events = [_EventWriter(stack, out / "history", b.name, num_users) for b in spec.behaviours]
        values: dict[str, list[Path]] = {name: [] for name in rule.names}
        repeated = 0
        for index, (first_user, last_user) in enumerate(partitions.users):
            frame = partitions.read(index)
            if frame is None:
                frame = pl.DataFrame(schema=partitions.scan().collect_schema())
            rows = _Rows(spec, frame)
            is_copy = is_repeated(rows.user, rows.time, rows.signature(), rows.number)
            repeated += int(is_copy.sum())
            rows.is_event[is_copy | (rows.extra > 0)] = False
            streams = build_streams(
                LogEvents(rows.user, rows.time, rows.item, rows.is_event), seeds.of_users(first_user, last_user)
            )
            ends = streams.ends + np.array([e.num_events for e in events], dtype=np.int64)
            codes = rule.codes(rows.user, rows.time, rows.number, rows.extra)
            for code, name in enumerate(rule.names):
                chosen = codes == code
                if chosen.any():
                    writers[name].append(rows, ends, chosen)
                    values[name] += _write_values(
                        frame, partitions.features, chosen, staging / f"{name}-{index}.parquet"
                    )
            for event, user, item, time in zip(events, streams.users, streams.items, streams.times, strict=True):
                event.append(user, item, time)
            progress((index + 1) / len(partitions.users))
        for event in events:
            event.finish()
    return WrittenRows(
        {name: writer.num_rows for name, writer in writers.items()},
        {b.name: event.num_events for b, event in zip(spec.behaviours, events, strict=True)},
        repeated,
        values,
    )


class _Rows:
    """The columns of one partition as arrays."""

    def __init__(self, spec: DatasetSpec, frame: pl.DataFrame) -> None:
        self.user: NDArray[np.int32] = frame["user"].to_numpy()
        self.item: NDArray[np.int32] = frame["item"].to_numpy()
        self.time: NDArray[np.int64] = frame["time"].to_numpy()
        self.number: NDArray[np.int64] = frame[ROW].to_numpy()
        self.extra: NDArray[np.int8] = frame["extra"].to_numpy()
        self._signature: NDArray[np.uint64] = frame[SIGNATURE].to_numpy()
        self.is_event = np.zeros((frame.height, len(spec.behaviours)), dtype=bool)
        for column, behaviour in enumerate(spec.behaviours):
            self.is_event[:, column] = frame[event_column(behaviour.name)].to_numpy()
        self.labels = np.empty((frame.height, len(spec.tasks)), dtype=np.float32)
        for column, task in enumerate(spec.tasks):
            label = frame[label_column(task.name)].fill_null(float("nan")).to_numpy()
            self.labels[:, column] = label if task.clip is None else np.minimum(label, task.clip)

    def signature(self) -> NDArray[np.uint64]:
        """Equal for rows that are equal in every column of the log."""
        return self._signature


class _SplitWriter:
    def __init__(self, stack: ExitStack, directory: Path, num_tasks: int, num_behaviours: int) -> None:
        def begin(name: str, dtype: str, width: int | None = None) -> ArrayWriter:
            return stack.enter_context(ArrayWriter(directory / f"{name}.npy", dtype, width))

        self._user, self._item, self._time = begin("user", "<i4"), begin("item", "<i4"), begin("time", "<i8")
        self._labels = begin("labels", "<f4", num_tasks)
        self._ends = begin("ends", "<i8", num_behaviours)

    @property
    def num_rows(self) -> int:
        return self._user.num_rows

    def append(self, rows: _Rows, ends: NDArray[np.int64], chosen: NDArray[np.bool_]) -> None:
        self._user.append(rows.user[chosen])
        self._item.append(rows.item[chosen])
        self._time.append(rows.time[chosen])
        self._labels.append(rows.labels[chosen])
        self._ends.append(ends[chosen])


class _EventWriter:
    def __init__(self, stack: ExitStack, directory: Path, name: str, num_users: int) -> None:
        self._counts = np.zeros(num_users, dtype=np.int64)
        self._items = stack.enter_context(ArrayWriter(directory / f"{name}.items.npy", "<i4"))
        self._times = stack.enter_context(ArrayWriter(directory / f"{name}.times.npy", "<i8"))
        self._starts = stack.enter_context(ArrayWriter(directory / f"{name}.starts.npy", "<i8"))

    @property
    def num_events(self) -> int:
        return self._items.num_rows

    def append(self, user: NDArray[np.int32], item: NDArray[np.int32], time: NDArray[np.int64]) -> None:
        self._counts += np.bincount(user, minlength=len(self._counts))
        self._items.append(item)
        self._times.append(time)

    def finish(self) -> None:
        self._starts.append(np.concatenate([[0], np.cumsum(self._counts)]))


def _write_values(
    frame: pl.DataFrame, features: tuple[Feature, ...], chosen: NDArray[np.bool_], path: Path
) -> list[Path]:
    if not features:
        return []
    columns = [value_column(f.name) for f in features]
    frame.select(columns).filter(pl.Series(chosen)).write_parquet(path, compression="lz4", statistics=False)
    return [path]
