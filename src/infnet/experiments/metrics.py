"""What an experiment is judged by: sums over a user's events, means and ratios of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from infnet.errors import SpecError

__all__ = [
    "LOG_MEASURES",
    "PRE_PERIOD",
    "RESERVED",
    "Measure",
    "MetricSpec",
    "default_metrics",
    "metric_name",
    "parse_metric",
]

LOG_MEASURES = ("requests", "degraded", "latency_ms", "active_days", "returned_next_day", "impressions")
"""Measures with a meaning of their own: answered requests, those of them that were answered with something left out,
the milliseconds that requests took in the service, days (UTC) with a request, those of them with a request on the day
after as well, and items that were seen."""

PRE_PERIOD = "_before"
"""What the column of a measure ends in if it is of the time before the first exposure."""

RESERVED = ("user_id", "variant", "first_ms")
"""Columns of a user table that are no measures."""

_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
_EXAMPLE = "click/impressions or watch_time.value"


class Measure(BaseModel):
    """One number per user: a sum over his events, or a measure of :data:`LOG_MEASURES`.

    Written as a text it is the latter's name, ``click`` for the number of events of that type with a value over 0 (one
    of 0 did not happen), or ``watch_time.value`` for the sum of their values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    event: str = Field(min_length=1)
    """Type of the events."""
    sum: Literal["count", "value"] = "count"
    """What is summed."""

    @property
    def column(self) -> str:
        """Its column in a user table."""
        return self.event if self.sum == "count" else f"{self.event}.value"

    @property
    def pre_column(self) -> str:
        """The column of the same before the first exposure."""
        return self.column + PRE_PERIOD

    @property
    def is_of_events(self) -> bool:
        """Whether it sums events of a type, unlike the measures of :data:`LOG_MEASURES`."""
        return self.sum == "value" or self.event not in LOG_MEASURES


def _measure(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    event, dot, what = value.strip().rpartition(".")
    return {"event": event, "sum": "value"} if dot and what == "value" else {"event": value.strip()}


class MetricSpec(BaseModel):
    """A metric: what is compared between variants, and which way is better."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=_NAME)
    kind: Literal["mean", "ratio"] = "mean"
    """``mean``: the numerator per user. ``ratio``: the numerator's sum over the denominator's; users stay what is
    counted, so that many events of one user are no more certain than one user is."""
    numerator: Annotated[Measure, BeforeValidator(_measure)]
    denominator: Annotated[Measure | None, BeforeValidator(_measure)] = None
    better: Literal["higher", "lower"] = "higher"
    is_guardrail: bool = False
    """A guardrail is not to be improved but not to be harmed."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """Of a guardrail: the relative harm that is tolerated; 0.02 by default."""

    @model_validator(mode="after")
    def _is_whole(self) -> MetricSpec:
        if self.kind == "ratio" and self.denominator is None:
            raise ValueError(f"metric '{self.name}' is a ratio and needs a denominator, such as impressions")
        if self.kind == "mean" and self.denominator is not None:
            raise ValueError(f"metric '{self.name}' has a denominator; write kind: ratio, or leave it out")
        if self.margin is not None and not self.is_guardrail:
            raise ValueError(f"metric '{self.name}' has a margin; write is_guardrail: true, or leave it out")
        for measure in self.measures:
            if measure.column in RESERVED or measure.column.endswith(PRE_PERIOD):
                raise ValueError(
                    f"metric '{self.name}' counts '{measure.column}', the name of another column; rename the event"
                )
        return self

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The numerator, and the denominator of a ratio."""
        return (self.numerator,) if self.denominator is None else (self.numerator, self.denominator)

    @property
    def tolerated(self) -> float:
        """The margin in force."""
        return 0.02 if self.margin is None else self.margin

    @property
    def formula(self) -> str:
        """``click/impressions``."""
        return "/".join(measure.column for measure in self.measures)


def parse_metric(text: str) -> MetricSpec:
    """A metric from ``[NAME=]NUMERATOR[/DENOMINATOR]``, such as ``ctr=click/impressions``.

    Raises:
        SpecError: The text is no such thing.
    """
    name, equals, formula = text.rpartition("=")
    numerator, slash, denominator = (part.strip() for part in formula.partition("/"))
    if not numerator or (slash and not denominator) or (equals and not name.strip()):
        raise SpecError(f"--metric '{text}': wanted [NAME=]NUMERATOR[/DENOMINATOR], such as {_EXAMPLE}")
    settings: dict[str, Any] = {"name": name.strip() or metric_name(formula), "numerator": numerator}
    if slash:
        settings |= {"kind": "ratio", "denominator": denominator}
    try:
        return MetricSpec.model_validate(settings)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpecError(f"--metric '{text}': {message}; write it such as ctr={_EXAMPLE}") from error


def default_metrics(event_types: list[str]) -> list[MetricSpec]:
    """Of an experiment that declares none: each type of event per impression, and days with a request per user."""
    rates = [
        MetricSpec(
            name=f"{metric_name(kind)}_rate",
            kind="ratio",
            numerator=Measure(event=kind),
            denominator=Measure(event="impressions"),
        )
        for kind in sorted(event_types)
    ]
    return [*rates, MetricSpec(name="active_days", numerator=Measure(event="active_days"))]


def metric_name(formula: str) -> str:
    """A name made of a formula."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", formula.replace("/", "_per_")).strip("_")
    return name if name[:1].isalpha() else f"m_{name}"
