"""The history file: per user the events from before the log began."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.entities import Entities
from infnet.data.histories import SeedEvents
from infnet.data.report import SeedReport
from infnet.data.sources.files import ROW, RawTable, StagedTable
from infnet.errors import DataError, SpecError
from infnet.features import as_text
from infnet.schema import DatasetSpec

__all__ = ["Seeds", "no_seeds", "read_seeds"]

_TIME = "last_time_ms"


class Seeds:
    """Seed events, user by user.

    Attributes:
        report: How many were used and ignored.
        item_counts: (n_items,) events of each item.
    """

    def __init__(self, events: pl.LazyFrame, num_items: int, report: SeedReport) -> None:
        """``events`` has columns user, item (indices), time, behaviour and order."""
        self._events = events
        self.report = report
        counts = events.group_by("item").len().collect(engine="streaming")
        self.item_counts: NDArray[np.int64] = np.zeros(num_items, dtype=np.int64)
        self.item_counts[counts["item"].to_numpy()] = counts["len"].to_numpy()

    def of_users(self, first: int, last: int) -> SeedEvents:
        """Events of the users from index ``first`` to ``last``, both included."""
        frame = self._events.filter(pl.col("user").is_between(first, last)).collect(engine="streaming")
        columns = (frame[name].to_numpy() for name in ("user", "time", "item", "behaviour", "order"))
        return SeedEvents(*columns)


def no_seeds(num_items: int) -> Seeds:
    """What a log without a history file has."""
    schema = {"user": pl.Int32, "time": pl.Int64, "item": pl.Int32, "behaviour": pl.Int8, "order": pl.Int32}
    return Seeds(pl.LazyFrame(schema=schema), num_items, SeedReport())


def read_seeds(spec: DatasetSpec, path: Path, users: Entities, items: Entities, staging: Path) -> Seeds:
    """Read a history file (Parquet or CSV): the user's key, ``last_time_ms``, and one list column per seeded behaviour.

    Every event carries the time ``last_time_ms``; lists are oldest first. Events of users or items that do not exist
    are ignored and counted.

    Raises:
        SpecError: No behaviour names a seed, or a named column does not exist.
        DataError: The file is missing or damaged, or a user has no ``last_time_ms``.
    """
    seeded = [(index, b.seed) for index, b in enumerate(spec.behaviours) if b.seed is not None]
    if not seeded:
        raise SpecError(f"{path}: a history file is given, but no behaviour names its column of it (seed: ..)")
    if not path.is_file():
        raise DataError(f"{path}: does not exist; give a Parquet or CSV file with {spec.log.user} and {_TIME}")
    raw = RawTable(path.parent, [path.name], "the history file")
    raw.require(spec.log.user, "log.user")
    if spec.log.time is not None:
        raw.require(_TIME, "--history")
    for index, column in seeded:
        raw.require(column, f"behaviour '{spec.behaviours[index].name}', seed")
    table = raw.stage({spec.log.user, _TIME, *(column for _, column in seeded)}, staging)
    frame = table.frame.select(
        ROW,
        key=as_text(pl.col(spec.log.user), table.schema[spec.log.user]),
        # Where the log's order is the clock, its rows count from 0.
        time=pl.lit(-1, dtype=pl.Int64) if spec.log.time is None else pl.col(_TIME).cast(pl.Int64, strict=False),
        **{f"seed {index}": _lists(table, column) for index, column in seeded},
    )
    _check_times(spec, table, frame)
    user_keys = users.keys.lazy().rename({"index": "user"})
    item_keys = items.keys.lazy().rename({"index": "item index"})
    staged = []
    for index, _ in seeded:
        events = (
            frame.select(
                *("key", "time"),
                pl.col(f"seed {index}").alias("item"),
                pl.int_ranges(pl.col(f"seed {index}").list.len(), dtype=pl.Int32).alias("order"),
            )
            .filter(pl.col("item").list.len() > 0)
            .explode("item", "order")
        )
        joined = events.join(user_keys, on="key", how="left").join(
            item_keys, left_on="item", right_on="key", how="left"
        )
        behaviour = pl.lit(index, dtype=pl.Int8).alias("behaviour")
        staged.append(staging / f"events-{index}.parquet")
        joined.select("user", "time", pl.col("item index").alias("item"), behaviour, "order").sink_parquet(
            staged[-1], compression="lz4", row_group_size=200_000, mkdir=True
        )
    found = pl.scan_parquet(staged)
    stranger, unknown = pl.col("user").is_null(), pl.col("user").is_not_null() & pl.col("item").is_null()
    counts = found.select(
        used=(~stranger & ~unknown).sum(), unknown_user=stranger.sum(), unknown_item=unknown.sum()
    ).collect(engine="streaming")
    report = SeedReport(**counts.row(0, named=True))
    return Seeds(found.filter(~stranger & ~unknown), items.num, report)


def _lists(table: StagedTable, column: str) -> pl.Expr:
    """A list column, or text such as ``[3, 5]`` or ``3,5``, as lists of canonical keys."""
    dtype = table.schema[column]
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return pl.col(column).cast(pl.List(inner)).list.eval(as_text(pl.element(), inner)).list.drop_nulls()
    text = pl.col(column).cast(pl.String).str.strip_chars(" []").str.split(",")
    return text.list.eval(as_text(pl.element().str.strip_chars(" '\""), pl.String())).list.drop_nulls()


def _check_times(spec: DatasetSpec, table: StagedTable, frame: pl.LazyFrame) -> None:
    bad = frame.filter(pl.col("time").is_null()).select(ROW, "key").head(1).collect(engine="streaming")
    if bad.height:
        row, key = bad.row(0)
        raise DataError(
            f"{table.where(row)}: {spec.log.user} {key} has no readable {_TIME}; wanted ms since 1970 of the last event"
        )
