"""Features made of time: the hour of the request, the age of the item."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from infnet.features.base import MISSING, NUM_RESERVED, Clock, Feature, Fit, Fitted, Reads, feature_kind, require_scalar
from infnet.features.numeric import bucket_labels, bucket_rows

__all__ = ["AgeFeature", "HourFeature", "as_time_ms", "text_as_time_ms"]

_DAY_MS = 86_400_000
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
)


def _local_ms(naive: pl.Expr, timezone: str) -> pl.Expr:
    """A wall-clock datetime of ``timezone`` in ms since 1970; an hour that happens twice is the first, one that never
    happens is null."""
    local = naive.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    return local.dt.timestamp("ms")


def text_as_time_ms(text: pl.Expr, timezone: str) -> pl.Expr:
    """Dates and times as text -> ms since 1970; wall clock of ``timezone`` unless they carry an offset or Z."""
    naive = [text.str.to_datetime(form, time_unit="ms", strict=False) for form in _FORMATS]
    days = [text.str.to_date(form, strict=False).cast(pl.Datetime("ms")) for form in ("%Y-%m-%d", "%Y/%m/%d")]
    with_offset = text.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False).dt.timestamp("ms")
    return pl.coalesce(_local_ms(pl.coalesce(*naive, *days), timezone), with_offset)


def as_time_ms(raw: pl.Expr, dtype: pl.DataType, timezone: str) -> pl.Expr:
    """Dates as text, date types, or numbers -> ms since 1970 (UTC).

    Numbers are read by their size: days such as 20220410, else seconds, milliseconds or microseconds since 1970.
    """
    require_scalar(dtype)
    if dtype == pl.Date:
        return _local_ms(raw.cast(pl.Datetime("ms")), timezone)
    if isinstance(dtype, pl.Datetime):
        in_ms = raw.dt.cast_time_unit("ms")
        return in_ms.dt.timestamp("ms") if dtype.time_zone else _local_ms(in_ms, timezone)
    number = raw.cast(pl.Float64, strict=False)
    day = number.cast(pl.Int64, strict=False).cast(pl.String).str.to_date("%Y%m%d", strict=False)
    is_day = number.is_between(19_000_101, 21_001_231)
    epoch = (
        pl.when(is_day)
        .then(_local_ms(day.cast(pl.Datetime("ms")), timezone))
        .when(number.abs() < 1e11)
        .then((number * 1000).round().cast(pl.Int64, strict=False))
        .when(number.abs() < 1e14)
        .then(number.round().cast(pl.Int64, strict=False))
        .otherwise((number / 1000).round().cast(pl.Int64, strict=False))
    )
    return pl.coalesce(text_as_time_ms(raw, timezone), epoch) if dtype == pl.String else epoch


@feature_kind("hour")
class HourFeature(Feature):
    """Hour of day (or of week) of the request, in the spec's time zone."""

    reads: ClassVar[Reads] = "time"
    learns: ClassVar[bool] = False

    kind: Literal["hour"] = "hour"
    side: Literal["context"] = "context"
    of: Literal["day", "week"] = "day"

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Hour 0 to 23, or 0 (Monday 0:00) to 167, as Int32."""
        local = clock.time.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").dt.convert_time_zone(clock.timezone)
        hour = local.dt.hour().cast(pl.Int32)
        return hour if self.of == "day" else (local.dt.weekday().cast(pl.Int32) - 1) * 24 + hour

    def fit(self, values: pl.DataFrame) -> Fit:
        """A row per hour."""
        days = ("",) if self.of == "day" else tuple(f"{day} " for day in _WEEKDAYS)
        return Fit(labels=[f"{day}{hour:02d}h" for day in days for hour in range(24)])

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, 1)."""
        rows = (values.cast(pl.Int32) + fitted.first + NUM_RESERVED).fill_null(fitted.first + MISSING)
        return rows.to_numpy()[:, None]


@feature_kind("age")
class AgeFeature(Feature):
    """Time from a date of the item until the request, in log buckets of days."""

    reads: ClassVar[Reads] = "item"
    learns: ClassVar[bool] = False

    kind: Literal["age"] = "age"
    side: Literal["candidate"] = "candidate"
    buckets: int = Field(default=16, ge=2)
    """The first is "not born yet", the second below an hour, the last over ten years."""

    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Age in days, Float64; negative where the date lies ahead."""
        return (clock.time - self.item_value(raw, dtype, clock.timezone)) / _DAY_MS

    def item_value(self, raw: pl.Expr, dtype: pl.DataType, timezone: str) -> pl.Expr:
        """The item's date in ms since 1970."""
        return as_time_ms(raw, dtype, timezone)

    def complaint(self, raw: Any) -> str:
        """Found and wanted."""
        return f"is {raw!r}, wanted a date such as 2022-04-10 or seconds or ms since 1970 (feature '{self.name}')"

    def fit(self, values: pl.DataFrame) -> Fit:
        """A row per bucket."""
        return Fit(
            state={"edges": self._edges().tolist()}, labels=[f"{text} days" for text in bucket_labels(self._edges())]
        )

    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, 1)."""
        return self._rows(values.cast(pl.Float64).fill_null(float("nan")).to_numpy(), fitted)

    def encode_at(
        self, item_values: NDArray[np.float64], time_ms: int | NDArray[np.int64], fitted: Fitted
    ) -> NDArray[np.int32] | NDArray[np.float32]:
        """Embedding rows (n, 1) of items with these dates."""
        return self._rows((time_ms - item_values) / _DAY_MS, fitted)

    def _rows(self, days: NDArray[np.float64], fitted: Fitted) -> NDArray[np.int32]:
        return bucket_rows(days, np.array(fitted.state["edges"]), fitted.first)[:, None]

    def _edges(self) -> NDArray[np.float64]:
        """0 days, then from an hour to ten years in equal ratios, ``buckets - 1`` in all."""
        return (
            np.concatenate([[0.0], np.geomspace(1 / 24, 3652.5, self.buckets - 2)]) if self.buckets > 2 else np.zeros(1)
        )
