"""The declarations: log, side tables, behaviours, tasks, split, and the dataset that they make up."""

from __future__ import annotations

import difflib
import re
from datetime import date
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import polars as pl
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from infnet.errors import did_you_mean
from infnet.features import Feature, parse_feature

__all__ = [
    "Behaviour",
    "DatasetSpec",
    "LogTable",
    "SideTable",
    "Split",
    "Task",
]

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_TAKEN = ("train", "valid", "test", "users", "items", "vocabularies", "history")
"""Names that other parts of a prepared dataset have."""


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LogTable(_Declared):
    """The interaction log: one row per impression of one item to one user."""

    files: list[str] = Field(min_length=1)
    """Glob patterns below the raw directory; CSV or Parquet. All files of all patterns are one table."""
    user: str
    """Column of the user's key."""
    item: str
    """Column of the item's key."""
    time: str | None
    """Column of the event time. ``null``: the file's order is the clock (split by fractions of each user's rows)."""
    time_unit: Literal["s", "ms", "us", "text"] = "ms"
    """Unit of a numeric time since 1970 (UTC); ``text`` for dates such as ``2022-05-05 13:00:00``."""
    keep: str | None = None
    """Expression; rows for which it is not true are left out, counted in the report."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Rows without a readable key or time go to quarantine; more than this share of them stops preparation."""


class SideTable(_Declared):
    """Features of users or items: one row per key."""

    key: str
    parts: list[list[str]] = Field(min_length=1)
    """Each part is a list of glob patterns whose files are one table; the parts are joined on the key."""
    missing: Literal["error", "keep", "drop"] = "error"
    """A log row whose key has no row here: stop, keep it with all features missing, or drop and count the row."""


class Behaviour(_Declared):
    """A kind of past event that makes up one of a user's histories."""

    name: str = Field(pattern=_NAME)
    filter: str
    """Expression over the log's columns, such as ``is_click == 1``."""
    length: int = Field(ge=1)
    """The most recent events a row sees."""
    fields: list[str] | None = None
    """Item features that make up the event's token; the item's ``id`` features by default."""
    seed: str | None = None
    """Column of the history file with events from before the log begins."""
    delay_s: float = Field(default=0.0, ge=0)
    """Seconds after which an event is seen, for features that arrive late, such as histories rebuilt every night."""
    gap: bool = False
    """Add an embedding of the time since the event (log buckets)."""
    position: bool = False
    """Add an embedding of the event's rank, most recent first."""
    event: str | None = None
    """Type of the service's events that belong to it; its own name by default."""

    @property
    def event_type(self) -> str:
        """The type in force."""
        return self.event or self.name


class Task(_Declared):
    """One label to predict."""

    name: str = Field(pattern=_NAME)
    label: str
    """Column or expression; a missing value leaves the row out of this task's loss and metrics."""
    kind: Literal["binary", "regression"] = "binary"
    weight: float = Field(default=1.0, ge=0)
    """lambda_i of the loss (INFNet eq. 13)."""
    loss: Literal["bce", "mse", "huber", "log_mse"] | None = None
    """``bce`` for binary; for regression ``mse`` of the standardised label (the default), ``huber`` of the same, or
    the squared error of log(1 + label)."""
    clip: float | None = Field(default=None, gt=0)
    """Regression labels above this are cut to it."""
    event: str | None = None
    """Type of the service's events that tell the label; the task's own name by default."""
    window_s: float = Field(default=1800.0, gt=0)
    """Seconds after an impression within which its events count; without any, the label is 0."""
    combine: Literal["sum", "max", "last"] = "sum"
    """A regression label, of several events of one impression."""

    @field_validator("name")
    @classmethod
    def _is_no_average(cls, name: str) -> str:
        if name == "mean":
            raise ValueError("task 'mean' needs another name: the average over all tasks is called that")
        return name

    @model_validator(mode="after")
    def _loss_fits_kind(self) -> Task:
        if self.kind == "binary" and self.loss not in (None, "bce"):
            raise ValueError(f"task '{self.name}' is binary, so its loss is bce, not {self.loss}")
        if self.kind == "binary" and self.clip is not None:
            raise ValueError(f"task '{self.name}' is binary; clip is for regression")
        if self.kind == "regression" and self.loss == "bce":
            raise ValueError(f"task '{self.name}' is a regression; its loss is mse, huber or log_mse")
        return self

    @property
    def event_type(self) -> str:
        """The type of its events in force."""
        return self.event or self.name

    @property
    def resolved_loss(self) -> Literal["bce", "mse", "huber", "log_mse"]:
        """The loss in force."""
        return self.loss or ("bce" if self.kind == "binary" else "mse")


class Split(_Declared):
    """Where training ends, validation ends and testing begins."""

    valid_from: date | None = None
    """First day of validation, in the spec's time zone."""
    test_from: date | None = None
    """First day of testing."""
    fractions: tuple[float, float] | None = None
    """Shares of validation and test, the newest rows, instead of dates."""
    per_user: bool = False
    """Take the fractions of each user's own rows rather than of the whole log."""
    random: bool = False
    """Take the fractions at random. Lets a model see the future; only for logs that have no order at all."""
    extra: dict[str, str] = Field(default_factory=dict)
    """Further test splits by expression, such as ``{random: is_rand == 1}``. Their rows are in no other split and
    feed no history."""

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        for name in self.extra:
            if not re.fullmatch(_NAME, name) or name in _TAKEN:
                raise ValueError(f"extra split '{name}' needs another name: a word, and none of {', '.join(_TAKEN)}")
        dates = self.valid_from is not None or self.test_from is not None
        if dates == (self.fractions is not None):
            raise ValueError("split needs either valid_from and test_from, or fractions")
        if dates:
            if self.valid_from is None or self.test_from is None or self.valid_from >= self.test_from:
                raise ValueError("split needs valid_from earlier than test_from, both dates such as 2022-05-05")
            if self.per_user or self.random:
                raise ValueError("per_user and random go with fractions, not with dates")
        elif self.fractions is not None:
            valid, test = self.fractions
            if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
                raise ValueError(f"fractions {list(self.fractions)} must each be over 0 and sum to less than 1")
        return self


def _wrong(at: tuple[int | str, ...], message: str) -> PydanticCustomError:
    """A complaint of the whole spec about its part ``at``, whose line the message will then name."""
    return PydanticCustomError("declaration", "{message}", {"message": message, "at": at})


def _features(value: Any) -> list[Feature]:
    if not isinstance(value, list):
        raise ValueError("features is a list, one entry per feature")
    return value


class DatasetSpec(_Declared):
    """A dataset, declared: where the log is, what its columns mean, what to predict and how to split it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str = ""
    timezone: str = "UTC"
    """For dates and hours, such as ``Asia/Shanghai``."""
    log: LogTable
    user: SideTable | None = None
    """Absent: users are the keys found in the log."""
    item: SideTable | None = None
    """Absent: items are the keys found in the log."""
    features: Annotated[
        list[SerializeAsAny[Annotated[Feature, BeforeValidator(parse_feature)]]], BeforeValidator(_features)
    ] = Field(min_length=1)
    behaviours: list[Behaviour] = Field(default_factory=list)
    tasks: list[Task] = Field(min_length=1)
    split: Split

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, name: str) -> str:
        try:
            pl.select(pl.lit(0).cast(pl.Datetime("ms")).dt.replace_time_zone(name))
        except pl.exceptions.PolarsError:
            near = difflib.get_close_matches(name, available_timezones(), n=1)
            hint = f"did you mean '{near[0]}'?" if near else "write it as UTC or Asia/Shanghai"
            raise ValueError(f"unknown time zone '{name}'; {hint}") from None
        return name

    @model_validator(mode="after")
    def _names_agree(self) -> DatasetSpec:
        for key, declared in (("features", self.features), ("behaviours", self.behaviours), ("tasks", self.tasks)):
            names = [entry.name for entry in declared]
            for index, name in enumerate(names):
                if name in names[:index]:
                    message = f"{key.removesuffix('s')} '{name}' is declared twice; give each its own name"
                    raise _wrong((key, index, "name"), message)
        item_fields = {f.name for f in self.features if f.side == "item" and f.storage != "dense"}
        for index, behaviour in enumerate(self.behaviours):
            for place, name in enumerate(self.behaviour_fields(behaviour)):
                if name not in item_fields:
                    raise _wrong(
                        ("behaviours", index, "fields", place),
                        f"behaviour '{behaviour.name}' builds its tokens from '{name}', "
                        f"which is no categorical item feature{did_you_mean(name, item_fields)}",
                    )
            if not self.behaviour_fields(behaviour):
                message = f"behaviour '{behaviour.name}' needs fields: declare an item feature of kind id"
                raise _wrong(("behaviours", index), message)
        for index, feature in enumerate(self.features):
            if feature.kind == "id" and feature.side not in ("user", "item"):
                message = f"feature '{feature.name}' of kind id is of side user or item, not {feature.side}"
                raise _wrong(("features", index, "side"), message)
        if self.log.time is None and self.split.fractions is None:
            raise _wrong(("split",), "a log without a time column is split by fractions, not by dates")
        for index, behaviour in enumerate(self.behaviours):
            if behaviour.delay_s and self.log.time is None:
                message = f"behaviour '{behaviour.name}' has a delay, but the log has no time column to measure it by"
                raise _wrong(("behaviours", index, "delay_s"), message)
        return self

    def behaviour_fields(self, behaviour: Behaviour) -> list[str]:
        """Names of the item features that make up one event's token."""
        if behaviour.fields is not None:
            return behaviour.fields
        return [f.name for f in self.features if f.kind == "id" and f.side == "item"]

    def with_split(self, valid_from: date, test_from: date) -> DatasetSpec:
        """The same dataset split at other dates."""
        split = Split(valid_from=valid_from, test_from=test_from, extra=self.split.extra)
        return self.model_copy(update={"split": split})

    def with_delay(self, delay_s: float) -> DatasetSpec:
        """The same dataset, with events of all behaviours seen so many seconds late."""
        behaviours = [b.model_dump() | {"delay_s": delay_s} for b in self.behaviours]
        return DatasetSpec.model_validate(self.model_dump() | {"behaviours": behaviours})
