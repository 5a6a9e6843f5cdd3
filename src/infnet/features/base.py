"""What every kind of feature promises, and the registry that knows the kinds by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infnet.errors import SpecError, did_you_mean

__all__ = [
    "MISSING",
    "NUM_RESERVED",
    "UNKNOWN",
    "Clock",
    "Feature",
    "Fit",
    "Fitted",
    "Reads",
    "Side",
    "Storage",
    "feature_kind",
    "feature_kinds",
    "parse_feature",
    "require_scalar",
]

Side = Literal["user", "context", "item", "candidate"]
"""Whom a feature describes. ``context`` is known once per request (hour, tab); ``candidate`` depends on the request
and the item together (age of the item at request time)."""

Storage = Literal["id", "ids", "dense"]
"""One embedding row per value; up to ``width`` rows, padded with -1; or ``width`` float32 numbers."""

Reads = Literal["column", "key", "time", "item"]
"""Where raw values come from: a column of the feature's own side, the entity's key, the request's time alone, or a
column of the item together with the request's time."""

UNKNOWN, MISSING, NUM_RESERVED = 0, 1, 2
"""Offsets in a vocabulary of the unknown and the missing row, and of the first row with a meaning of its own."""


@dataclass(frozen=True)
class Clock:
    """The request's time, for features that read it."""

    time: pl.Expr
    """Milliseconds since 1970, UTC."""
    timezone: str


@dataclass(frozen=True)
class Fit:
    """What a feature learnt from its training values."""

    state: dict[str, Any] = field(default_factory=dict)
    """JSON-able; all that :meth:`Feature.encode` needs beside the vocabulary."""
    counts: pl.DataFrame | None = None
    """Columns ``value`` (text, distinct) and ``count``: values that ask for a row of the vocabulary each."""
    min_count: int = 1
    """Values with a lower count get no row."""
    labels: Sequence[str] = ()
    """Instead of ``counts``: what each row of the vocabulary after the reserved ones stands for (a bucket, an hour)."""


@dataclass(frozen=True)
class Fitted:
    """What encoding needs: the learnt state and the feature's part of the embedding table."""

    state: dict[str, Any]
    first: int = 0
    """First row of the vocabulary; 0 for dense features."""
    listed: pl.DataFrame | None = None
    """Columns ``value`` (text) and ``row`` (int32) of a vocabulary that lists its values."""


class Feature(BaseModel):
    """What every kind of feature has in common.

    A kind says how a raw column is read (:meth:`read`), what is learnt from the training values (:meth:`fit`) and how
    values become embedding rows or numbers (:meth:`encode`). Preparation and serving call the same three.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    storage: ClassVar[Storage] = "id"
    reads: ClassVar[Reads] = "column"
    learns: ClassVar[bool] = True
    """Whether :meth:`fit` looks at the values."""

    kind: str
    name: str = Field(min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    side: Side
    column: str | None = None
    """Column of the raw table; the feature's own name by default."""

    @property
    def source(self) -> str:
        """The raw column it reads."""
        return self.column or self.name

    @property
    def vocabulary_name(self) -> str | None:
        """The vocabulary its embedding rows belong to; None for dense features."""
        return None if self.storage == "dense" else self.name

    @property
    def num_columns(self) -> int:
        """Columns it takes in its side's id or dense matrix."""
        return 1

    @abstractmethod
    def read(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Typed values of a raw column of type ``dtype``; null where the raw value is missing or cannot be read."""

    def unreadable(self, raw: pl.Expr, dtype: pl.DataType, clock: Clock) -> pl.Expr:
        """Boolean, never null: there is a raw value, but :meth:`read` cannot read it."""
        if self.reads in ("time", "key"):
            return pl.lit(False)
        is_there = raw.is_not_null() & (raw.str.len_bytes() > 0 if dtype == pl.String else True)
        return is_there & self.read(raw, dtype, clock).is_null()

    def complaint(self, raw: Any) -> str:
        """Why the raw value cannot be read, for the end of an error message: found and wanted."""
        return f"is {raw!r}, which kind '{self.kind}' cannot read"

    @abstractmethod
    def fit(self, values: pl.DataFrame) -> Fit:
        """What the training values teach.

        Args:
            values: Columns ``value`` (as :meth:`read` gives them, repeated or not, null where missing) and ``weight``
                (training rows each stands for).
        """

    @abstractmethod
    def encode(self, values: pl.Series, fitted: Fitted) -> NDArray[np.int32] | NDArray[np.float32]:
        """Values as :meth:`read` gives them -> (n, num_columns): int32 embedding rows, or float32 if dense."""

    def item_value(self, raw: pl.Expr, dtype: pl.DataType, timezone: str) -> pl.Expr:
        """The part of :meth:`read` that the item alone decides, as a number; of kinds that read an item's column."""
        raise TypeError(f"kind '{self.kind}' reads no column of an item")

    def encode_at(
        self, item_values: NDArray[np.float64], time_ms: int | NDArray[np.int64], fitted: Fitted
    ) -> NDArray[np.int32] | NDArray[np.float32]:
        """As :meth:`encode`, from what :meth:`item_value` gave (n,), NaN where missing, and the request's time,
        one or (n,)."""
        raise TypeError(f"kind '{self.kind}' reads no column of an item")


def require_scalar(dtype: pl.DataType) -> None:
    """Raise a ``SpecError`` for lists, structs and bytes, of which Polars would only notice when it meets a value."""
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise SpecError(f"type {dtype} holds no single values")


_KINDS: dict[str, type[Feature]] = {}
_F = TypeVar("_F", bound=type[Feature])


def feature_kind(name: str) -> Callable[[_F], _F]:
    """Register a class as the feature kind ``name``, as written in a spec."""

    def register(cls: _F) -> _F:
        _KINDS[name] = cls
        return cls

    return register


def feature_kinds() -> dict[str, type[Feature]]:
    """Every registered kind by name."""
    return dict(_KINDS)


def parse_feature(raw: Any) -> Feature:
    """A feature from its declaration; a ``SpecError`` suggests the nearest kind for a misspelt one."""
    if isinstance(raw, Feature):
        return raw
    if not isinstance(raw, dict) or "kind" not in raw:
        raise SpecError(f"a feature needs a kind{did_you_mean('', _KINDS)}")
    if not isinstance(raw["kind"], str) or raw["kind"] not in _KINDS:
        raise SpecError(f"unknown feature kind '{raw['kind']}'{did_you_mean(str(raw['kind']), _KINDS)}")
    return _KINDS[raw["kind"]].model_validate(raw)
