"""Features that are numbers: bucketed, standardised, or whole vectors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from infnet.features.base import (
    MISSING,
    NUM_RESERVED,
    Clock,
    Feature,
    Fit,
    Fitted,
    Storage,
    feature_kind,
    require_scalar,
)

__all__ = ["NumberFeature", "ValueFeature", "VectorFeature", "bucket_labels", "bucket_rows"]


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values))


def _signed_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.expm1(np.abs(values))


def _finite(values: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The finite values of a training column and their weights, both (n,)."""
    kept = values.filter(pl.col("value").is_finite())
    return kept["value"].to_numpy().astype(np.float64), kept["weight"].to_numpy().astype(np.float64)


_FURTHEST = 100.0
"""Standard deviations from the mean."""


def bucket_rows(values: NDArray[np.float64], edges: NDArray[np.float64], first: int) -> NDArray[np.int32]:
    """Embedding row (n,) of each value: ``edges[i]`` begins bucket i + 1; NaN and infinities are missing."""
    rows = first + NUM_RESERVED + np.searchsorted(edges, values, side="right")
    return np.where(np.isfinite(values), rows, first + MISSING).astype(np.int32)


def bucket_labels(edges: NDArray[np.float64]) -> list[str]:
    """``[lower, upper)`` of each of the len(edges) + 1 buckets."""
    ends = [f"{edge:.6g}" for edge in edges]
    return [f"[{low}, {high})" for low, high in zip(["-inf", *ends], [*ends, "inf"], strict=True)]


def _number(raw: pl.Expr) -> pl.Expr:
    return raw.cast(pl.Float64, strict=False)


def _floats(values: pl.Series) -> NDArray[np.float64]:
    """Values (n,) with NaN for null."""
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


@feature_kind("number")
class NumberFeature(Feature):
    """A number, cut into buckets that each have an embedding row."""

    kind: Literal["number"] = "number"
    buckets: int = Field(default=32, ge=2)
    method: Literal["quantile", "log"] = "quantile"
    """Equally filled buckets of the training values, or buckets of equal width in ``sign(x) log(1 + |x|)``."""

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Float64."""
        require_scalar(dtype)
        return _number(raw)

    def complaint(self, raw: Any) -> str:
        """Found and wanted."""
        return f"is {raw!r}, wanted a number; declare feature '{self.name}' as category if it is none"

    def fit(self, values: pl.DataFrame) -> Fit:
        """Bucket edges, equal ones merged."""
        found, weights = _finite(values)
        if self.method == "log":
            found = _signed_log(found)
        edges = np.zeros(0)
        if found.size and self.method == "log":
            edges = np.linspace(found.min(), found.max(), self.buckets + 1)[1:-1]
        elif found.size:
            order = np.argsort(found, kind="stable")
            filled = np.cumsum(weights[order])
            wanted = filled[-1] * np.arange(1, self.buckets) / self.buckets
            at = np.searchsorted(filled, wanted, side="right")
            edges = found[order][np.minimum(at, found.size - 1)]
        if found.size:
            edges = np.unique(edges[edges > found.min()])
        shown = _signed_exp(edges) if self.method == "log" else edges
        return Fit(state={"edges": edges.tolist()}, labels=bucket_labels(shown))

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, 1)."""
        found = _floats(values)
        if self.method == "log":
            found = _signed_log(found)
        return bucket_rows(found, np.array(fitted.state["edges"], dtype=np.float64), fitted.first)[:, None]


def _standard(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation (1 if there is none) of the finite training values."""
    if not values.size:
        return 0.0, 1.0
    mean = float(np.average(values, weights=weights))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
    return mean, std if std > 0 else 1.0


def _standard_scores(values: NDArray[np.float64], fitted: Fitted) -> NDArray[np.float32]:
    """Like ``values``; an outlier beyond sense would make whole rows of a model infinite."""
    with np.errstate(over="ignore"):  # clipped below
        scores = (values - np.array(fitted.state["mean"])) / np.array(fitted.state["std"])
    bounded: NDArray[np.float32] = np.where(np.isfinite(values), scores.clip(-_FURTHEST, _FURTHEST), 0.0).astype(
        np.float32
    )
    return bounded


@feature_kind("value")
class ValueFeature(Feature):
    """A number, standardised on the training values and projected into one token."""

    storage: ClassVar[Storage] = "dense"

    kind: Literal["value"] = "value"
    log: bool = False
    """Take ``sign(x) log(1 + |x|)`` first."""

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Float64."""
        require_scalar(dtype)
        return _number(raw)

    def complaint(self, raw: Any) -> str:
        """Found and wanted."""
        return f"is {raw!r}, wanted a number; declare feature '{self.name}' as category if it is none"

    def fit(self, values: pl.DataFrame) -> Fit:
        """Mean and standard deviation."""
        found, weights = _finite(values)
        mean, std = _standard(_signed_log(found) if self.log else found, weights)
        return Fit(state={"mean": mean, "std": std})

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Standard scores (n, 1), at most 100 from the mean; 0, the mean, where missing."""
        found = _floats(values)
        if self.log:
            found = _signed_log(found)
        return _standard_scores(found, fitted)[:, None]


@feature_kind("vector")
class VectorFeature(Feature):
    """A vector computed elsewhere, such as a pretrained embedding, projected into one token."""

    storage: ClassVar[Storage] = "dense"

    kind: Literal["vector"] = "vector"
    width: int = Field(ge=1)
    separator: str = Field(default=",", min_length=1)
    """Between the numbers of a text cell; list columns need none."""

    @property
    def num_columns(self) -> int:
        """One per number."""
        return self.width

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Lists of ``width`` Float64; null where a cell holds another number of them, or something that is none."""
        if isinstance(dtype, pl.List | pl.Array):
            cells = raw.cast(pl.List(dtype.inner))
        else:
            cells = raw.cast(pl.String).str.strip_chars(" []").str.split(self.separator)
            cells = cells.list.eval(pl.element().str.strip_chars())
        cells = cells.list.eval(_number(pl.element()))
        fits = (cells.list.len() == self.width) & (cells.list.drop_nulls().list.len() == self.width)
        return pl.when(fits).then(cells)

    def complaint(self, raw: Any) -> str:
        """Found and wanted."""
        cells = raw.strip(" []").split(self.separator) if isinstance(raw, str) else list(raw)
        if len(cells) != self.width:
            return f"has {len(cells)} numbers, wanted {self.width} (the width of feature '{self.name}')"
        return f"is {str(raw)[:60]!r}, wanted {self.width} numbers"

    def fit(self, values: pl.DataFrame) -> Fit:
        """Mean and standard deviation of every column."""
        table, kept = self._table(values["value"]), values["value"].is_not_null().to_numpy()
        weights = values["weight"].to_numpy().astype(np.float64)[kept]
        fitted = [_standard_finite(column, weights) for column in table[kept].T]
        return Fit(state={"mean": [mean for mean, _ in fitted], "std": [std for _, std in fitted]})

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Standard scores (n, width), at most 100 from the mean; 0 where missing."""
        return _standard_scores(self._table(values), fitted)

    def _table(self, values: pl.Series) -> NDArray[np.float64]:
        """(n, width), NaN where missing."""
        table = np.full((len(values), self.width), np.nan)
        kept = values.is_not_null().to_numpy()
        table[kept] = _floats(values.drop_nulls().explode()).reshape(-1, self.width)
        return table


def _standard_finite(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    finite = np.isfinite(values)
    return _standard(values[finite], weights[finite])
