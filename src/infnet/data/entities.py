"""Users and items: which exist, what index they have, and the tables that describe them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.log import Log, check_readable
from infnet.data.log_columns import raw_column
from infnet.data.sources.files import ROW, SIGNATURE, RawTable, StagedTable
from infnet.errors import DataError, SpecError, did_you_mean
from infnet.features import Clock, Feature, as_text
from infnet.schema import DatasetSpec, SideTable

__all__ = ["Entities", "SidePart", "find_entities", "index_values", "read_side"]

EntitySide = Literal["user", "item"]


@dataclass(frozen=True)
class SidePart:
    """One table of users or items: the features it holds and the key that says whom a row describes."""

    table: StagedTable
    key: str
    features: tuple[Feature, ...]

    def keys(self) -> pl.Series:
        """Canonical key of every row."""
        text = as_text(pl.col(self.key), self.table.schema[self.key])
        return self.table.frame.select(text.alias("key")).collect(engine="streaming").to_series()

    def values(self, features: Sequence[Feature], timezone: str) -> pl.LazyFrame:
        """What the features read, in columns of their names."""
        clock = Clock(pl.lit(None, dtype=pl.Int64), timezone)
        return self.table.frame.select(
            f.read(pl.col(f.source), self.table.schema[f.source], clock).alias(f.name) for f in features
        )


@dataclass(frozen=True)
class Entities:
    """All users, or all items. Index 0 is the unknown one; the others follow by length of their key, then by key."""

    side: EntitySide
    keys: pl.DataFrame
    """Columns ``key`` (text) and ``index`` (int32, from 1), in order."""
    parts: tuple[SidePart, ...]
    request_values: pl.DataFrame | None = None
    """Columns ``index`` and raw columns that features of a request read (the age of an item), if there are any."""

    @property
    def num(self) -> int:
        """How many, the unknown one included."""
        return self.keys.height + 1

    def indices(self, keys: pl.Series) -> NDArray[np.int32]:
        """Index of every key; 0 for unknown ones."""
        found = keys.alias("key").to_frame().join(self.keys, on="key", how="left", maintain_order="left")
        return found["index"].fill_null(0).to_numpy()

    def part_rows(self, part: SidePart) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Entity index of every row of a part, and whether the row is the first of its entity."""
        index = self.indices(part.keys())
        first = np.zeros(len(index), dtype=bool)
        first[np.unique(index, return_index=True)[1]] = True
        return index, first


def read_side(spec: DatasetSpec, side: EntitySide, raw: Path, staging: Path, log: Log | None) -> tuple[SidePart, ...]:
    """The tables of one side; without any, what the log says of each entity first (if features ask for it).

    Raises:
        SpecError: A feature names a column that no table has.
        DataError: A key is missing or stands for two different rows, or a value does not fit its feature.
    """
    declared: SideTable | None = getattr(spec, side)
    features = [f for f in spec.features if f.side == side and f.reads == "column"]
    if declared is None:
        return _from_log(spec, side, features, staging, log) if features and log is not None else ()
    dated = [f for f in spec.features if f.reads == "item"] if side == "item" else []
    tables = [RawTable(raw, patterns, f"the {side} table") for patterns in declared.parts]
    homes: dict[str, int] = {}
    for feature in [*features, *dated]:
        home = next((i for i, table in enumerate(tables) if feature.source in table.schema), None)
        if home is None:
            known = {name for table in tables for name in table.schema}
            files = ", ".join(table.files[0].name for table in tables)
            raise SpecError(
                f"feature '{feature.name}': the {side} table has no column '{feature.source}'"
                f"{did_you_mean(feature.source, known)} ({files})"
            )
        homes[feature.name] = home
        check_readable(feature, tables[home].schema[feature.source])
    parts = []
    for index, table in enumerate(tables):
        table.require(declared.key, f"{side}.key")
        here = [f for f in features if homes[f.name] == index]
        all_here = [f for f in [*features, *dated] if homes[f.name] == index]
        staged = table.stage({declared.key, *(f.source for f in all_here)}, staging / str(index), signature=True)
        part = SidePart(staged, declared.key, tuple(here))
        _check_part(part, all_here, spec.timezone)
        parts.append(part)
    return tuple(parts)


def _from_log(
    spec: DatasetSpec, side: EntitySide, features: list[Feature], staging: Path, log: Log
) -> tuple[SidePart, ...]:
    """What the log says of each entity in its first row that says anything."""
    columns = sorted({f.source for f in features})
    for feature in features:
        check_readable(feature, log.table.schema[feature.source])
    first = [
        pl.col(raw_column(name)).min_by(pl.when(pl.col(raw_column(name)).is_not_null()).then(pl.col(ROW))).alias(name)
        for name in columns
    ]
    path = staging / "from_log.parquet"
    found = log.rows.group_by(pl.col(side).alias(" key")).agg(*first, pl.col(ROW).min())
    found.sink_parquet(path, compression="lz4", statistics=False, mkdir=True)
    schema = {name: log.table.schema[name] for name in columns} | {" key": pl.String()}
    frame = pl.scan_parquet(path)
    table = StagedTable(log.table.what, log.table.files, log.table.starts, schema, log.table.is_text, frame)
    part = SidePart(table, " key", tuple(features))
    _check_part(part, features, spec.timezone)
    return (part,)


def _check_part(part: SidePart, features: Sequence[Feature], timezone: str) -> None:
    table, clock = part.table, Clock(pl.lit(0, dtype=pl.Int64), timezone)
    key = as_text(pl.col(part.key), table.schema[part.key])
    wrong = {f: f.unreadable(pl.col(f.source), table.schema[f.source], clock) for f in features}
    counts = table.frame.select(
        key.is_null().any().alias(" key"), *(expr.any().alias(f.name) for f, expr in wrong.items())
    )
    found = counts.collect(engine="streaming").row(0, named=True)
    if found[" key"]:
        row = table.frame.filter(key.is_null()).select(ROW).head(1).collect(engine="streaming").item()
        raise DataError(f"{table.where(row)}: has no {part.key}; every row of {table.what} needs its key")
    for feature, expr in wrong.items():
        if found[feature.name]:
            first = table.frame.filter(expr).select(ROW, feature.source).head(1).collect(engine="streaming")
            row, value = first.row(0)
            raise DataError(f"{table.where(row)}: column '{feature.source}' {feature.complaint(value)}")
    if SIGNATURE in table.frame.collect_schema():
        _check_unique(part, key)


def _check_unique(part: SidePart, key: pl.Expr) -> None:
    """A key may stand twice only if the rows are equal."""
    rows = part.table.frame.select(ROW, SIGNATURE, key=key)
    differing = (
        rows.group_by("key")
        .agg(pl.len(), pl.col(SIGNATURE).min().alias("low"), pl.col(SIGNATURE).max().alias("high"))
        .filter(pl.col("low") != pl.col("high"))
        .select("key")
    )
    again = rows.join(differing, on="key", how="semi").collect(engine="streaming").sort(ROW)
    if again.height:
        same = again.filter(pl.col("key") == again["key"][0])
        raise DataError(
            f"{part.table.where(same[ROW][1])}: {part.key} {same['key'][0]} stands there again with other values "
            f"than in {part.table.where(same[ROW][0], short=True)}; keep one row per key"
        )


def find_entities(
    spec: DatasetSpec, side: EntitySide, parts: tuple[SidePart, ...], log: Log
) -> tuple[Entities, dict[str, int]]:
    """All entities of one side, and log rows to be dropped because their key is in no table, by reason.

    Raises:
        DataError: A log row's key is in no table, and the spec does not say what to do then.
    """
    declared: SideTable | None = getattr(spec, side)
    used = log.rows.group_by(pl.col(side).alias("key")).agg(pl.len().alias("rows"), pl.col(ROW).min())
    used_keys = used.collect(engine="streaming")
    dropped: dict[str, int] = {}
    if declared is None:
        keys = used_keys["key"]
    else:
        keys = pl.concat([part.keys() for part in parts]).unique()
        strangers = used_keys.join(keys.alias("key").to_frame(), on="key", how="anti")
        if strangers.height and declared.missing == "error":
            first, rows = strangers.sort(ROW).row(0, named=True), strangers["rows"].sum()
            column = getattr(spec.log, side)
            raise DataError(
                f"{log.table.where(first[ROW])}: {column} {first['key']} has no row in the {side} table "
                f"({parts[0].table.files[0].name}), one of {strangers.height} such keys in {rows} log rows; set "
                f"'missing: keep' (all features missing) or 'missing: drop' (leave the rows out) under {side}"
            )
        if strangers.height and declared.missing == "drop":
            dropped[f"{side} not in its table"] = int(strangers["rows"].sum())
        if strangers.height and declared.missing == "keep":
            keys = pl.concat([keys, strangers["key"]])
    ordered = keys.alias("key").to_frame().sort(pl.col("key").str.len_bytes(), "key")
    numbered = ordered.with_columns((pl.int_range(pl.len(), dtype=pl.Int32) + 1).alias("index"))
    entities = Entities(side, numbered, parts)
    return Entities(side, numbered, parts, _request_values(spec, entities)), dropped


def _request_values(spec: DatasetSpec, entities: Entities) -> pl.DataFrame | None:
    """Raw item columns that features of a request read, by item index."""
    sources = {f.source for f in spec.features if f.reads == "item"}
    if entities.side != "item" or not sources or not entities.parts:
        return None
    joined = entities.keys.select("index")
    for part in entities.parts:
        here = sorted(sources & part.table.schema.keys())
        sources -= set(here)
        if here:
            index, first = entities.part_rows(part)
            columns: Any = part.table.frame.select(raw_column_of(name) for name in here).collect(engine="streaming")
            columns = columns.with_columns(index=pl.Series(index)).filter(pl.Series(first))
            joined = joined.join(columns, on="index", how="left", maintain_order="left")
    return joined


def raw_column_of(name: str) -> pl.Expr:
    """A raw column under the name that features of a request look for."""
    return pl.col(name).alias(raw_column(name))


def index_values(values: pl.LazyFrame, chunk_size: int) -> Iterator[tuple[slice, pl.DataFrame]]:
    """Consecutive pieces of a lazy frame, each with the rows it covers."""
    start = 0
    for frame in values.collect_batches(chunk_size=chunk_size, maintain_order=True, engine="streaming"):
        yield slice(start, start + frame.height), frame
        start += frame.height
