"""What a policy declares: objectives as formulas, how they are combined, and what a page may hold."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from infnet.ranking.ads.spec import Ads
from infnet.ranking.rerank.spec import Constraint, Diversity

__all__ = ["Combination", "Exploration", "InputSpec", "Normalisation", "Objective", "PolicySpec", "Segment"]

Combination: TypeAlias = Literal["weighted_sum", "product_of_powers", "rank_fusion"]
Normalisation: TypeAlias = Literal["none", "minmax", "zscore", "rank"]

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_Name: TypeAlias = Annotated[str, Field(pattern=_NAME)]
_Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InputSpec(_Declared):
    """Where the value of a name comes from: exactly one of ``task``, ``item`` and ``request``."""

    task: str | None = None
    """A task's prediction: a probability, or of a regression a value in its label's unit."""
    item: str | None = None
    """A field of each candidate, brought by the request or set with ``PUT /v1/items``."""
    request: str | None = None
    """A field of the request's context."""
    unit: str = ""
    """Of the value, such as USD or s; for whoever reads an explanation."""
    range: tuple[_Finite, _Finite] | None = None
    """Values beyond are moved to the nearest end; what formulas can come to is worked out from it when the policy is
    loaded. [0, 1] for probabilities, [0, 1e6] for regressions, [-1e6, 1e6] for fields by default."""
    default: _Finite = 0.0
    """Of an item or a request that does not have the field."""

    @model_validator(mode="after")
    def _has_one_source(self) -> InputSpec:
        if sum(source is not None for source in (self.task, self.item, self.request)) != 1:
            raise ValueError("an input has exactly one of task, item and request")
        if self.range is not None:
            low, high = self.range
            if low > high:
                raise ValueError(f"range [{low:g}, {high:g}] is upside down; wanted [lowest, highest]")
            if self.task is None and not low <= self.default <= high:
                raise ValueError(f"default {self.default:g} is outside of range [{low:g}, {high:g}]; give one inside")
        return self


class Objective(_Declared):
    """Something that items are worth showing for."""

    formula: str = Field(min_length=1)
    weight: _Finite = 1.0
    normalise: Normalisation | None = None
    """Instead of the policy's own."""


class Segment(_Declared):
    """Other weights for some requests."""

    when: str = Field(min_length=1)
    """A formula over inputs of the request; they are meant where it is not 0."""
    weights: dict[_Name, _Finite] = Field(min_length=1)
    """By objective; others keep theirs."""


class Exploration(_Declared):
    """Requests answered in a random order, so that other policies can be judged by the log."""

    share: float = Field(ge=0, le=1, allow_inf_nan=False)
    """Of all requests, chosen by their ids."""


class PolicySpec(_Declared):
    """A policy file."""

    name: str = "policy"
    inputs: dict[_Name, InputSpec] = {}
    """Beside the tasks, which are there by themselves: ``p_TASK`` of a binary one, ``TASK`` of a regression."""
    objectives: dict[_Name, Objective] = Field(min_length=1)
    combine: Combination = "weighted_sum"
    """``weighted_sum`` of the objectives; the ``product_of_powers`` value ** weight; or ``rank_fusion``, the sum of
    weight / (60 + rank) (Cormack et al., SIGIR 2009)."""
    normalise: Normalisation = "none"
    """Of each objective over the candidates of a request, before it is weighted."""
    segments: tuple[Segment, ...] = ()
    """The first that fits a request decides."""
    constraints: tuple[Constraint, ...] = ()
    """The first ones are the last to be given up where a page cannot keep them all."""
    diversity: Diversity | None = None
    ads: Ads | None = None
    exploration: Exploration = Exploration(share=0.0)

    @field_validator("objectives")
    @classmethod
    def _weighs_something(cls, objectives: dict[str, Objective]) -> dict[str, Objective]:
        if all(objective.weight == 0 for objective in objectives.values()):
            raise ValueError("every weight is 0, so no item is better than another; give one objective a weight")
        return objectives

    @model_validator(mode="after")
    def _fits(self) -> PolicySpec:
        if self.combine != "weighted_sum":
            for name, objective in self.objectives.items():
                if (objective.normalise or self.normalise) != "none":
                    raise ValueError(f"objectives.{name}: normalise goes with weighted_sum, not {self.combine}")
        if self.combine == "rank_fusion":
            for name, objective in self.objectives.items():
                if objective.weight <= 0:
                    raise ValueError(f"objectives.{name}: rank_fusion wants a weight above 0, not {objective.weight:g}")
        for index, segment in enumerate(self.segments):
            for name in segment.weights:
                if name not in self.objectives:
                    raise ValueError(
                        f"segments[{index}] weighs '{name}', which is no objective; there are "
                        f"{', '.join(self.objectives)}"
                    )
        return self
