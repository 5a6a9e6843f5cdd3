"""Fitting the encoder on the training rows, and encoding users, items and the requests' own features with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.data.arrays import ArrayWriter, chunks, filled_array
from infnet.data.encoders import Encoder, side_features
from infnet.data.entities import Entities, index_values
from infnet.data.log_columns import raw_column, value_column
from infnet.features import Feature, Fit, Side

__all__ = ["fit_entities", "fit_requests", "write_entities", "write_item_values", "write_requests"]

_CHUNK = 500_000


def fit_entities(
    features: Sequence[Feature], entities: Entities, weights: NDArray[np.int64], timezone: str
) -> dict[str, Fit]:
    """What the features of one side learn.

    Args:
        weights: (num entities,) training rows of each; entities without any teach nothing.
    """
    fits = {}
    for feature in features:
        if feature.side == entities.side and feature.reads == "key":
            fits[feature.name] = feature.fit(_weighted(entities.keys["key"], weights[1:]))
    for part in entities.parts:
        index, first = entities.part_rows(part)
        row_weights = np.where(first, weights[index], 0)
        for feature in part.features:
            values = part.values([feature], timezone).collect(engine="streaming").to_series()
            fits[feature.name] = feature.fit(_weighted(values, row_weights))
    return fits


def _weighted(values: pl.Series, weights: NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame({"value": values, "weight": weights}).filter(pl.col("weight") > 0)


def fit_requests(features: Sequence[Feature], train: Sequence[Path]) -> dict[str, Fit]:
    """What context and candidate features learn; ``train`` are the files with the training rows' value columns."""
    fits = {}
    rows = pl.scan_parquet(list(train)) if features else pl.LazyFrame()
    for feature in features:
        column = pl.col(value_column(feature.name)).alias("value")
        if not feature.learns:
            fits[feature.name] = feature.fit(pl.DataFrame(schema={"value": pl.Null, "weight": pl.Int64}))
        elif rows.collect_schema()[value_column(feature.name)] == pl.String:
            counts = rows.group_by(column).agg(pl.len().cast(pl.Int64).alias("weight"))
            fits[feature.name] = feature.fit(counts.collect(engine="streaming"))
        else:
            values = rows.select(column, pl.lit(1, dtype=pl.Int64).alias("weight"))
            fits[feature.name] = feature.fit(values.collect(engine="streaming"))
    return fits


def _reserved_row(encoder: Encoder, features: Sequence[Feature], dtype: Any, *, unknown: bool) -> NDArray[Any]:
    rows = [encoder.unknown(f.name) if unknown else encoder.missing(f.name) for f in features]
    return np.concatenate([np.zeros(0, dtype=dtype), *rows]).astype(dtype)


def write_entities(encoder: Encoder, entities: Entities, directory: Path, timezone: str) -> None:
    """Write ``keys.parquet``, ``ids.npy`` and ``dense.npy`` of one side.

    Row 0 is unknown in every field; an entity without a row in some table is missing in that table's fields.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entities.keys.select("key").write_parquet(directory / "keys.parquet", statistics=False)
    features = side_features(list(encoder.features.values()), entities.side)
    ids = [f for f in features if f.storage != "dense"]
    dense = [f for f in features if f.storage == "dense"]
    with ExitStack() as stack:
        tables: dict[bool, NDArray[Any]] = {}
        columns: dict[str, tuple[bool, slice]] = {}
        for is_dense, members, dtype, name in ((False, ids, "<i4", "ids"), (True, dense, "<f4", "dense")):
            fill = _reserved_row(encoder, members, dtype, unknown=False)
            table = stack.enter_context(filled_array(directory / f"{name}.npy", fill, entities.num))
            table[0] = _reserved_row(encoder, members, dtype, unknown=True)
            tables[is_dense] = table
            columns |= {n: (is_dense, place) for n, place in _places(members).items()}
        for feature in features:
            if feature.reads == "key":
                is_dense, place = columns[feature.name]
                for part in chunks(entities.keys.height, _CHUNK):
                    keys = entities.keys["key"][part]
                    tables[is_dense][part.start + 1 : part.stop + 1, place] = encoder.encode_read(feature.name, keys)
        for side_part in entities.parts:
            if not side_part.features:
                continue
            index, _ = entities.part_rows(side_part)
            for rows, frame in index_values(side_part.values(side_part.features, timezone), _CHUNK):
                for feature in side_part.features:
                    is_dense, place = columns[feature.name]
                    tables[is_dense][index[rows], place] = encoder.encode_read(feature.name, frame[feature.name])


def _places(features: Sequence[Feature]) -> dict[str, slice]:
    """Columns of each feature in its matrix."""
    places, at = {}, 0
    for feature in features:
        places[feature.name] = slice(at, at + feature.num_columns)
        at += feature.num_columns
    return places


def write_item_values(items: Entities, features: Sequence[Feature], directory: Path, timezone: str) -> None:
    """Write ``values/FEATURE.npy`` for features of a request that read a column of the item, NaN where missing."""
    if items.request_values is None:
        return
    by_index = items.keys.select("index").join(items.request_values, on="index", how="left", maintain_order="left")
    for feature in features:
        name = raw_column(feature.source)
        if feature.reads == "item" and name in by_index.columns:
            value = feature.item_value(pl.col(name), by_index.schema[name], timezone).cast(pl.Float64)
            found = by_index.select(value.fill_null(float("nan"))).to_series().to_numpy()
            (directory / "values").mkdir(exist_ok=True)
            np.save(directory / "values" / f"{feature.name}.npy", np.append(np.nan, found).astype("<f8"))


def write_requests(encoder: Encoder, values: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Write ``context.npy``, ``candidate.npy`` and their dense matrices for every split."""
    sides: tuple[Side, ...] = ("context", "candidate")
    for split, paths in values.items():
        with ExitStack() as stack:
            writers = []
            for side in sides:
                features = side_features(list(encoder.features.values()), side)
                for suffix, dtype, is_dense in (("", "<i4", False), ("_dense", "<f4", True)):
                    members = [f for f in features if (f.storage == "dense") == is_dense]
                    width = sum(f.num_columns for f in members)
                    writer = ArrayWriter(out / split / f"{side}{suffix}.npy", dtype, width)
                    if members:
                        writers.append((stack.enter_context(writer), members))
            for path in paths:
                frame = pl.read_parquet(path)
                for writer, members in writers:
                    encoded = [encoder.encode_read(f.name, frame[value_column(f.name)]) for f in members]
                    writer.append(np.concatenate(encoded, axis=1))
