"""Experiments, declared: layers, variants, who is in since when, and what they are judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from infnet.errors import SpecError, did_you_mean
from infnet.experiments.hashing import HashVersion
from infnet.experiments.metrics import MetricSpec

__all__ = ["Experiment", "ExperimentsSpec", "Layer", "RampStep", "Variant"]

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _text_keys(value: Any) -> Any:
    """YAML reads a user's key such as 123 as a number."""
    return {str(key): inner for key, inner in value.items()} if isinstance(value, dict) else value


Time = Annotated[datetime, AfterValidator(_utc)]
"""UTC where no time zone is given."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True)


class Variant(_Declared):
    """One of the ways that users are served."""

    name: str = Field(pattern=_NAME)
    weight: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Its share of the experiment's users; equal shares if no variant has one."""
    policy: str | None = None
    """File of the ranking policy; the service's own by default."""
    bundle: str | None = None
    """Bundle that scores; the service's own by default."""


class RampStep(_Declared):
    """From when on an experiment has a share of its users."""

    since: Time = Field(alias="from")
    coverage: Share


class Layer(_Declared):
    """Experiments of one layer exclude each other; layers know nothing of each other."""

    name: str = Field(pattern=_NAME)
    holdout: Share = 0.0
    """Share of users that are in none of its experiments."""


class Experiment(_Declared):
    """Variants, of which one is the control, and who gets which."""

    name: str = Field(pattern=_NAME)
    layer: str = Field(default="default", pattern=_NAME)
    range: tuple[Share, Share] = (0.0, 1.0)
    """Its part of the layer's users. Ranges stay as they are when other experiments come and go."""
    seed: str | None = Field(default=None, pattern=r"^[^:]+$")
    """Of the hash; the experiment's name by default. Another seed shuffles all users anew. Those of layers have a
    colon."""
    hash_version: HashVersion = 2
    variants: tuple[Variant, ...] = Field(min_length=2)
    control: str | None = None
    """Name of a variant; the first by default."""
    coverage: Share = 1.0
    """Share of the range's users that are in it."""
    ramp: tuple[RampStep, ...] = ()
    """Coverage over time instead; none before the first step."""
    forced: Annotated[dict[str, str], BeforeValidator(_text_keys)] = Field(default_factory=dict)
    """Variants by user id, for testing: at all times and whatever coverage and hold-outs say. Never counted."""
    start: Time | None = None
    end: Time | None = None
    """Planned; nobody is in it from then on."""
    metrics: tuple[MetricSpec, ...] = ()

    @property
    def resolved_control(self) -> str:
        """The control in force."""
        return self.control or self.variants[0].name

    @property
    def resolved_seed(self) -> str:
        """The seed in force."""
        return self.name if self.seed is None else self.seed

    @property
    def weights(self) -> dict[str, float]:
        """Share by variant; they sum to 1."""
        return {v.name: 1 / len(self.variants) if v.weight is None else v.weight for v in self.variants}

    def runs_with(self, other: Experiment) -> bool:
        """Whether there is a moment at which both run."""
        begins = [time for time in (self.start, other.start) if time is not None]
        ends = [time for time in (self.end, other.end) if time is not None]
        return not begins or not ends or max(begins) < min(ends)

    @model_validator(mode="after")
    def _is_consistent(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        _unique("variants", names, f"variant of experiment '{self.name}'")
        _unique("metrics", [metric.name for metric in self.metrics], f"metric of experiment '{self.name}'")
        if self.range[0] >= self.range[1]:
            raise _wrong(("range",), f"range {list(self.range)} holds nobody; wanted its start below its end")
        given = [variant.weight for variant in self.variants if variant.weight is not None]
        if given and len(given) < len(names):
            raise _wrong(("variants",), "some variants have a weight and some have none; give all or none")
        if given and not math.isclose(sum(given), 1, abs_tol=1e-6):
            raise _wrong(("variants",), f"weights sum to {sum(given):g}, wanted 1")
        if self.control is not None and self.control not in names:
            raise _wrong(("control",), f"'{self.control}' is no variant{did_you_mean(self.control, names)}")
        for user, variant in self.forced.items():
            if variant not in names:
                raise _wrong(
                    ("forced", user),
                    f"user '{user}' is forced into '{variant}', which is no variant{did_you_mean(variant, names)}",
                )
        if self.ramp and "coverage" in self.model_fields_set:
            raise _wrong(("coverage",), "coverage is what the ramp says; give one of the two")
        for index, (one, other) in enumerate(zip(self.ramp, self.ramp[1:], strict=False), start=1):
            if other.since <= one.since:
                raise _wrong(("ramp", index, "from"), f"{other.since:%Y-%m-%dT%H:%M:%SZ} is not after the step before")
            if other.coverage < one.coverage:
                raise _wrong(
                    ("ramp", index, "coverage"),
                    f"{other.coverage:g} is less than the {one.coverage:g} before, which would throw users out; end it",
                )
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise _wrong(("end",), f"{self.end:%Y-%m-%dT%H:%M:%SZ} is not after the start; wanted a later time")
        return self


class ExperimentsSpec(_Declared):
    """All experiments of a service."""

    holdout: Share = 0.0
    """Share of users that are in no experiment of any layer."""
    layers: tuple[Layer, ...] = ()
    """Only those that have a hold-out need to be declared."""
    experiments: tuple[Experiment, ...] = ()

    def experiment(self, name: str) -> Experiment:
        """One by name.

        Raises:
            SpecError: There is none of that name.
        """
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise SpecError(f"experiment '{name}' is not declared{did_you_mean(name, self.names)}")

    @property
    def names(self) -> list[str]:
        """Of the experiments."""
        return [experiment.name for experiment in self.experiments]

    @model_validator(mode="after")
    def _is_consistent(self) -> ExperimentsSpec:
        _unique("layers", [layer.name for layer in self.layers], "layer")
        _unique("experiments", self.names, "experiment")
        declared = [layer.name for layer in self.layers]
        for index, one in enumerate(self.experiments):
            if declared and one.layer not in (*declared, "default"):
                raise _wrong(
                    ("experiments", index, "layer"),
                    f"'{one.layer}' is not among the layers{did_you_mean(one.layer, declared)}",
                )
            for other in self.experiments[:index]:
                _check_pair(index, other, one)
        return self


def _check_pair(index: int, one: Experiment, other: Experiment) -> None:
    """Two experiments neither share users that they must not share nor assign them alike."""
    if one.resolved_seed == other.resolved_seed:
        raise _wrong(
            ("experiments", index, "seed"),
            f"'{other.name}' has the seed of '{one.name}', '{other.resolved_seed}', so both would split users alike; "
            "give it another seed",
        )
    if one.layer != other.layer:
        return
    both = max(one.range[0], other.range[0]), min(one.range[1], other.range[1])
    if both[0] < both[1] and one.runs_with(other):
        total = sum(e.range[1] - e.range[0] for e in (one, other))
        over = f", {total:.0%} together" if total > 1 else ""
        raise _wrong(
            ("experiments", index, "range"),
            f"'{one.name}' and '{other.name}' of layer '{one.layer}' both take users {both[0]:g} to {both[1]:g}{over}; "
            "give them disjoint ranges, times that do not meet, or two layers",
        )
    for user in one.forced.keys() & other.forced.keys():
        raise _wrong(
            ("experiments", index, "forced", user),
            f"user '{user}' is forced into '{one.name}' of the same layer already; keep one",
        )


def _unique(place: str, names: Sequence[str], what: str) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _wrong((place, index, "name"), f"{what} '{name}' is declared twice; give each its own name")


def _wrong(at: tuple[int | str, ...], message: str) -> PydanticCustomError:
    """A complaint of a declaration about its part ``at``, whose line the message will then name."""
    return PydanticCustomError("declaration", "{message}", {"message": message, "at": at})
