"""DatasetSpec: what a log means. Features, behaviours, tasks, keys and split, as one validated YAML file.

Every other module reads these declarations; none of them re-declares one.
"""

from __future__ import annotations

import difflib
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import polars as pl
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from infnet.errors import InfnetError, SpecError, did_you_mean
from infnet.features import Feature, feature_kinds, parse_feature

__all__ = [
    "Behaviour",
    "DatasetSpec",
    "LogTable",
    "SideTable",
    "Split",
    "Task",
    "load_spec",
    "parse_spec",
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
    gap: bool = False
    """Add an embedding of the time since the event (log buckets)."""
    position: bool = False
    """Add an embedding of the event's rank, most recent first."""


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


def _line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of ``loc`` that the document holds."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, node = key.start_mark.line + 1, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _known_fields(raw: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Names the declaration around ``loc`` accepts, for a suggestion."""
    model: Any = DatasetSpec
    where = {"log": LogTable, "user": SideTable, "item": SideTable, "split": Split}
    if len(loc) > 1 and loc[0] in where:
        model = where[str(loc[0])]
    elif len(loc) > 2 and loc[0] == "behaviours":
        model = Behaviour
    elif len(loc) > 2 and loc[0] == "tasks":
        model = Task
    elif len(loc) > 2 and loc[0] == "features" and isinstance(loc[1], int):
        model = feature_kinds().get(raw["features"][loc[1]].get("kind"), Feature)
    return list(model.model_fields)


def parse_spec(text: str, source: str = "spec") -> DatasetSpec:
    """A spec from YAML text.

    Raises:
        SpecError: One line naming ``source``, the line, the field, what is wrong and the nearest known name.
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"{source}, line {line}: not valid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{source}, line {line}: not valid YAML: {error.reason}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{source}, line 1: a spec is a mapping with name, log, features, tasks and split")
    _check_keys(document, source)
    try:
        return DatasetSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_spec_message(source, document, raw, error)) from error
    except InfnetError as error:
        # Raised by a feature's own parser, which knows no position; find the entry it complained about.
        for index, entry in enumerate(raw.get("features") or []):
            try:
                parse_feature(entry)
            except InfnetError:
                line = _line_of(document, ("features", index, "kind"))
                raise SpecError(f"{source}, line {line}: features[{index}]: {error}") from error
        raise


def _check_keys(document: yaml.Node | None, source: str) -> None:
    """YAML itself lets a repeated key replace the first one silently."""
    todo: list[yaml.Node | None] = [document]
    done: set[int] = set()
    while todo:
        node = todo.pop()
        if node is None or id(node) in done:  # an alias can lead back to where it stands
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            first_by_name: dict[Any, yaml.Node] = {}
            for key, value in node.value:
                first = first_by_name.setdefault(key.value, key)
                if first is not key:
                    there, here = (which.start_mark.line + 1 for which in (first, key))
                    raise SpecError(f"{source}, line {here}: '{key.value}' stands in line {there} already; keep one")
                todo.append(value)


def _spec_message(source: str, document: yaml.Node | None, raw: Any, error: ValidationError) -> str:
    # A misspelt setting also leaves the right one missing: name the misspelling first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = tuple(part for part in first["loc"] if not str(part).startswith(("function-", "list[")))
    loc += first.get("ctx", {}).get("at", ())
    line = _line_of(document, loc)
    path = ".".join(str(part) for part in loc) or "spec"
    if first["type"] == "extra_forbidden":
        return f"{source}, line {line}: unknown setting '{path}'{did_you_mean(str(loc[-1]), _known_fields(raw, loc))}"
    found = "" if first["type"] in ("missing", "value_error", "declaration") else f", found {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}, line {line}: {path}: {message}{found}"


def load_spec(path: Path) -> DatasetSpec:
    """A spec from a YAML file; see :func:`parse_spec`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a dataset spec") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text; a dataset spec is a YAML file") from error
    return parse_spec(text, str(path))
