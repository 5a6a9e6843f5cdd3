"""The kinds of features a dataset spec can declare.

A kind is one class: its options as fields, and how its raw values become embedding rows or numbers
(:meth:`Feature.fit`, :meth:`Feature.encode`). It is registered by naming it with :func:`feature_kind`, and nothing
else in the package knows the kinds by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from infnet.errors import SpecError, did_you_mean

__all__ = ["Feature", "Side", "Storage", "feature_kind", "feature_kinds", "parse_feature"]

Side = Literal["user", "context", "item", "candidate"]
"""Whom a feature describes. ``context`` is known once per request (hour, tab); ``candidate`` depends on the request
and the item together (age of the item at request time)."""

Storage = Literal["id", "ids", "dense"]
"""One embedding row per value; up to ``width`` rows, padded with -1; or ``width`` float32 numbers."""


class Feature(BaseModel):
    """What every kind of feature has in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    storage: ClassVar[Storage] = "id"

    kind: str
    name: str = Field(min_length=1, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    side: Side
    column: str | None = None
    """Column of the raw table; the feature's own name by default."""


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
    if raw["kind"] not in _KINDS:
        raise SpecError(f"unknown feature kind '{raw['kind']}'{did_you_mean(str(raw['kind']), _KINDS)}")
    return _KINDS[raw["kind"]].model_validate(raw)


class _Categorical(Feature):
    vocabulary: str | None = None
    """Features that name the same vocabulary share ids and embedding rows; the feature's own name by default."""
    min_count: int = Field(default=1, ge=1)
    """Values seen in fewer training rows share the unknown row."""
    hash_buckets: int | None = Field(default=None, ge=2)
    """Hash values into this many rows instead of listing them."""


@feature_kind("id")
class IdFeature(_Categorical):
    """The key of the user or item itself, with an embedding of its own per entity."""

    kind: Literal["id"] = "id"


@feature_kind("category")
class CategoryFeature(_Categorical):
    """One value out of many."""

    kind: Literal["category"] = "category"


@feature_kind("tags")
class TagsFeature(_Categorical):
    """Several values out of many; their embeddings are averaged into one token."""

    storage: ClassVar[Storage] = "ids"

    kind: Literal["tags"] = "tags"
    separator: str = ","
    """Between the values of a text cell; list columns need none."""
    max_values: int = Field(default=5, ge=1)
    """Values past this many are dropped."""


@feature_kind("number")
class NumberFeature(Feature):
    """A number, cut into buckets that each have an embedding row."""

    kind: Literal["number"] = "number"
    buckets: int = Field(default=32, ge=2)
    method: Literal["quantile", "log"] = "quantile"
    """Equally filled buckets of the training values, or buckets of equal width in ``sign(x) log(1 + |x|)``."""


@feature_kind("value")
class ValueFeature(Feature):
    """A number, standardised on the training values and projected into one token."""

    storage: ClassVar[Storage] = "dense"

    kind: Literal["value"] = "value"
    log: bool = False
    """Take ``sign(x) log(1 + |x|)`` first."""


@feature_kind("vector")
class VectorFeature(Feature):
    """A vector computed elsewhere, such as a pretrained embedding, projected into one token."""

    storage: ClassVar[Storage] = "dense"

    kind: Literal["vector"] = "vector"
    width: int = Field(ge=1)
    separator: str = ","
    """Between the numbers of a text cell; list columns need none."""


@feature_kind("hour")
class HourFeature(Feature):
    """Hour of day (or of week) of the request, in the spec's time zone."""

    kind: Literal["hour"] = "hour"
    side: Side = "context"
    of: Literal["day", "week"] = "day"


@feature_kind("age")
class AgeFeature(Feature):
    """Time from a date of the item until the request, in log buckets of days."""

    kind: Literal["age"] = "age"
    side: Side = "candidate"
    buckets: int = Field(default=16, ge=2)
