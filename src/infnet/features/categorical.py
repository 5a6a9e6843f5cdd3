"""Features that are one value, or several, out of many: ids, categories, tags."""

from __future__ import annotations

import zlib
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from infnet.features.base import (
    MISSING,
    NUM_RESERVED,
    UNKNOWN,
    Clock,
    Feature,
    Fit,
    Fitted,
    Reads,
    Storage,
    feature_kind,
    require_scalar,
)

__all__ = ["CategoricalFeature", "CategoryFeature", "IdFeature", "TagsFeature", "as_text"]


def as_text(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The one spelling of a categorical value, so that 123, 123.0 and "123" agree wherever they come from.

    Empty text and NaN are missing.

    Raises:
        SpecError: A column of this type holds lists or the like.
    """
    require_scalar(dtype)
    if dtype.is_integer() or dtype == pl.Boolean:
        return raw.cast(pl.String)
    text = (raw.fill_nan(None) if dtype.is_float() else raw).cast(pl.String)
    whole = text.str.ends_with("0") & text.str.contains(".", literal=True)
    return pl.when(text.str.len_bytes() > 0).then(
        pl.when(whole).then(text.str.replace(r"^(-?\d+)\.0+$", "$1")).otherwise(text)
    )


def _rows_of(values: pl.Series, listed: pl.DataFrame, first: int) -> pl.Series:
    """Embedding row of every text value; unlisted ones get the unknown row, null the missing row."""
    found = values.alias("value").to_frame().join(listed, on="value", how="left", maintain_order="left")
    row = pl.when(pl.col("value").is_null()).then(first + MISSING).otherwise(pl.col("row").fill_null(first + UNKNOWN))
    return found.select(row.cast(pl.Int32).alias("row")).to_series()


class CategoricalFeature(Feature):
    """Options and lookup that all of these kinds share."""

    vocabulary: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Features that name the same vocabulary share ids and embedding rows; the feature's own name by default."""
    min_count: int = Field(default=1, ge=1)
    """Values seen in fewer training rows share the unknown row."""
    hash_buckets: int | None = Field(default=None, ge=2)
    """Hash values into this many rows instead of listing them."""

    @model_validator(mode="after")
    def _lists_or_hashes(self) -> CategoricalFeature:
        if self.hash_buckets is not None and self.min_count > 1:
            raise ValueError(f"feature '{self.name}' has both hash_buckets and min_count; a hash needs no min_count")
        return self

    @property
    def vocabulary_name(self) -> str | None:
        """The vocabulary it shares, or its own."""
        return self.vocabulary or self.name

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Canonical text."""
        return as_text(raw, dtype)

    def unreadable(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Nothing: any value is a category."""
        return pl.lit(False)

    def fit(self, values: pl.DataFrame) -> Fit:
        """How many training rows each value stands for; nothing to learn if values are hashed."""
        if self.hash_buckets is not None:
            return Fit(labels=[f"hash {bucket}" for bucket in range(self.hash_buckets)])
        counts = values.drop_nulls("value").group_by("value").agg(pl.col("weight").sum().cast(pl.Int64).alias("count"))
        return Fit(counts=counts, min_count=self.min_count)

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, 1)."""
        return self._rows(values, fitted).to_numpy()[:, None]

    def _rows(self, values: pl.Series, fitted: Fitted) -> pl.Series:
        if self.hash_buckets is None:
            if fitted.listed is None:
                raise ValueError(f"feature '{self.name}' is encoded without its vocabulary")
            return _rows_of(values, fitted.listed, fitted.first)
        distinct = values.unique().drop_nulls()
        buckets = [fitted.first + NUM_RESERVED + zlib.crc32(text.encode()) % self.hash_buckets for text in distinct]
        listed = pl.DataFrame({"value": distinct, "row": pl.Series(buckets, dtype=pl.Int32)})
        return _rows_of(values, listed, fitted.first)


@feature_kind("id")
class IdFeature(CategoricalFeature):
    """The key of the user or item itself, with an embedding of its own per entity."""

    reads: ClassVar[Reads] = "key"

    kind: Literal["id"] = "id"


@feature_kind("category")
class CategoryFeature(CategoricalFeature):
    """One value out of many."""

    kind: Literal["category"] = "category"


@feature_kind("tags")
class TagsFeature(CategoricalFeature):
    """Several values out of many; their embeddings are averaged into one token."""

    storage: ClassVar[Storage] = "ids"

    kind: Literal["tags"] = "tags"
    separator: str = Field(default=",", min_length=1)
    """Between the values of a text cell; list columns need none."""
    max_values: int = Field(default=5, ge=1)
    """Values past this many are dropped."""

    @property
    def num_columns(self) -> int:
        """At most ``max_values`` rows per cell."""
        return self.max_values

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Lists of canonical text, at most ``max_values`` long; null if nothing is in the cell."""
        if isinstance(dtype, pl.List | pl.Array):
            cells, inner = raw.cast(pl.List(dtype.inner)), pl.DataType.from_python(str)
            inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        else:
            cells, inner = as_text(raw, dtype).str.split(self.separator), pl.String()
        values = cells.list.eval(as_text(_stripped(pl.element(), inner), inner)).list.drop_nulls()
        return pl.when(values.list.len() > 0).then(values.list.head(self.max_values))

    def fit(self, values: pl.DataFrame) -> Fit:
        """Counts of the single values."""
        return super().fit(values.explode("value"))

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, max_values), padded with -1."""
        lengths = values.list.len().fill_null(1).cast(pl.Int64).to_numpy()
        cells = np.repeat(np.arange(len(values)), lengths)
        places = np.arange(len(cells)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.full((len(values), self.max_values), -1, dtype=np.int32)
        rows[cells, places] = self._rows(values.explode(), fitted).to_numpy()
        return rows


def _stripped(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return text.str.strip_chars() if dtype == pl.String else text
