"""The rows of every split and the events of every behaviour, written as arrays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.arrays import ArrayWriter
from infnet.data.histories import LogEvents, build_streams, is_repeated
from infnet.data.log_columns import event_column, label_column, value_column
from infnet.data.partitions import Partitions
from infnet.data.seeds import Seeds
from infnet.data.sources.files import ROW, SIGNATURE
from infnet.data.splits import SplitRule
from infnet.features import Feature
from infnet.schema import DatasetSpec

__all__ = ["WrittenRows", "write_rows"]


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
        delays = np.array([round(1000 * b.delay_s) for b in spec.behaviours], dtype=np.int64)
        repeated = 0
        for index, (first_user, last_user) in enumerate(partitions.users):
            frame = partitions.read(index)
            if frame is None:
                frame = pl.DataFrame(schema=partitions.scan().collect_schema())
            rows = _Rows(spec, frame)
            is_copy = is_repeated(rows.user, rows.time, rows.signature(), rows.number)
            repeated += int(is_copy.sum())
            rows.is_event[is_copy | (rows.extra > 0)] = False
            happened = LogEvents(rows.user, rows.time, rows.item, rows.is_event)
            streams = build_streams(happened, seeds.of_users(first_user, last_user), delays)
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
