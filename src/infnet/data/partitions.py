"""The log joined with the indices of users and items, and cut into pieces of whole users that fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.entities import Entities
from infnet.data.log import Log
from infnet.data.log_columns import event_column, label_column, raw_column, value_column
from infnet.data.sources.files import ROW, SIGNATURE
from infnet.errors import DataError
from infnet.features import Clock, Feature
from infnet.schema import DatasetSpec

__all__ = ["Partitions", "partition_rows"]

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
