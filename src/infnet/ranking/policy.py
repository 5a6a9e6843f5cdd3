"""A policy at work: predictions and fields in, one score per candidate and each objective's part in it out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.data.layout import TaskLayout
from infnet.errors import DataError, SpecError, did_you_mean
from infnet.ranking.ads.sales import AdSales
from infnet.ranking.combine import combine, normalise
from infnet.ranking.formula import Formula
from infnet.ranking.interval import Interval
from infnet.ranking.policy_spec import InputSpec, Objective, PolicySpec, Segment
from infnet.ranking.rerank.inputs import Inputs
from infnet.ranking.rerank.page import Reranker
from infnet.ranking.rerank.spec import AdLoad
from infnet.schema.documents import Document, load_document

__all__ = ["Policy", "Scored", "policy_document"]

_RANGES = {"binary": (0.0, 1.0), "regression": (0.0, 1e6)}
_FIELD_RANGE = (-1e6, 1e6)
_WHAT = "a policy is a mapping with objectives, such as {click: {formula: p_click}}"


@dataclass(frozen=True)
class Scored:
    """What candidates are worth."""

    scores: NDArray[np.float64]
    """(N,), finite."""
    parts: Mapping[str, NDArray[np.float64]]
    """By objective its part in each score (N,): they add up to it, or of a product of powers multiply to it."""
    columns: Mapping[str, NDArray[np.float64]]
    """By input what formulas read: (N,), or () of the request's."""


def policy_document(path: Path) -> Document:
    """A policy file that is not checked yet.

    Raises:
        SpecError: It cannot be read, or is no YAML mapping.
    """
    return load_document(path, _WHAT)


class Policy:
    """A checked policy for one set of tasks; safe to use from several threads.

    Whatever the predictions and fields are, scores are finite: values are moved into their declared ranges, and a
    formula that could divide by zero or overflow within these is refused when the policy is made.

    Args:
        spec: What was declared.
        tasks: Of the model whose predictions it reads.
        document: Where it was declared, for messages.

    Attributes:
        inputs: By the name that formulas use; those that are used.
        version: Names the declaration's contents.

    Raises:
        SpecError: A formula is none, reads an unknown name or a task that the model lacks, or may have no finite value.
    """

    def __init__(self, spec: PolicySpec, tasks: Sequence[TaskLayout], document: Document | None = None) -> None:
        self.spec, self._document, self._tasks = spec, document, tuple(tasks)
        known = {f"p_{t.name}" if t.kind == "binary" else t.name: InputSpec(task=t.name) for t in tasks}
        kinds = {task.name: task.kind for task in tasks}
        for name, given in spec.inputs.items():
            if given.task is not None and given.task not in kinds:
                raise self._error(
                    f"the model predicts no task '{given.task}'{did_you_mean(given.task, kinds)}", "inputs", name
                )
        known |= spec.inputs
        self.ranges = {name: Interval(*_range(each, kinds)) for name, each in known.items()}
        inputs = Inputs(self.ranges, self._place)
        self._formulas: dict[str, Formula] = {}
        self.bounds: dict[str, Interval] = {}
        """By objective, what its formula can come to."""
        for name, objective in spec.objectives.items():
            self._formulas[name], bound = inputs.formula(objective.formula, "objectives", name, "formula")
            self._check_bound(name, objective, bound)
            self.bounds[name] = bound
        of_request = Inputs({name: self.ranges[name] for name, each in known.items() if each.request}, self._place)
        self._segments = [
            of_request.formula(each.when, "segments", index, "when")[0] for index, each in enumerate(spec.segments)
        ]
        self.ads = None if spec.ads is None else AdSales(spec.ads, inputs)
        """Sells positions to ads. Like the re-ranker it reads the columns of :class:`Scored`."""
        ad_field = "is_ad" if spec.ads is None else spec.ads.field
        self.reranker = Reranker(spec.constraints, spec.diversity, inputs, ad_field=ad_field)
        """Makes pages of what is scored."""
        self._check_ad_load(ad_field)
        used = {name for formula in (*self._formulas.values(), *self._segments) for name in formula.names}
        used.update(self.reranker.names, () if self.ads is None else self.ads.names)
        self.inputs: Mapping[str, InputSpec] = {name: known[name] for name in known if name in used}
        self._weights = np.array([objective.weight for objective in spec.objectives.values()])
        self.version = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]

    @classmethod
    def load(cls, path: Path | str, tasks: Sequence[TaskLayout]) -> Policy:
        """A policy from a YAML file.

        Raises:
            SpecError: It cannot be used; names the file, the line, what was found and what was wanted.
        """
        document = policy_document(Path(path))
        return cls(document.validated(PolicySpec), tasks, document)

    @classmethod
    def parse(cls, text: str, tasks: Sequence[TaskLayout], source: str = "policy") -> Policy:
        """The same from YAML text."""
        document = Document(text, source, _WHAT)
        return cls(document.validated(PolicySpec), tasks, document)

    def with_weights(self, weights: Mapping[str, float]) -> Policy:
        """The same with other weights of some objectives; segments keep theirs.

        Raises:
            SpecError: A score may overflow.
        """
        objectives = {
            name: each.model_copy(update={"weight": weights.get(name, each.weight)})
            for name, each in self.spec.objectives.items()
        }
        return Policy(self.spec.model_copy(update={"objectives": objectives}), self._tasks, self._document)

    @property
    def item_fields(self) -> tuple[str, ...]:
        """Fields of candidates that it reads."""
        read = (each.item for each in self.inputs.values() if each.item)
        of_ads = () if self.ads is None else self.ads.item_fields
        return tuple(dict.fromkeys([*read, *self.reranker.item_fields, *of_ads]))

    @property
    def request_fields(self) -> tuple[str, ...]:
        """Fields of requests that it reads."""
        return tuple(dict.fromkeys(each.request for each in self.inputs.values() if each.request))

    def score(
        self,
        predictions: Mapping[str, NDArray[np.floating]],
        items: Mapping[str, Sequence[Any]] | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> Scored:
        """What candidates are worth.

        Args:
            predictions: (N,) by task.
            items: By field one raw value per candidate; None where it has none.
            request: The request's fields.

        Raises:
            DataError: A field's value is no number.
        """
        num = len(next(iter(predictions.values())))
        columns = self.columns(num, predictions, items or {}, request or {})
        scores, parts = combine(self.values(num, columns), self.weights(self.segment(columns)), self.spec.combine)
        return Scored(scores, dict(zip(self._formulas, parts, strict=True)), columns)

    def segment(self, columns: Mapping[str, NDArray[np.float64]]) -> Segment | None:
        """The segment that a request belongs to."""
        fits = (each for each, when in zip(self.spec.segments, self._segments, strict=True) if when(columns) != 0)
        return next(fits, None)

    def weights(self, segment: Segment | None = None) -> NDArray[np.float64]:
        """(K,) of the objectives, for requests of a segment."""
        if segment is None:
            return self._weights
        return np.array([segment.weights.get(name, each.weight) for name, each in self.spec.objectives.items()])

    def values(self, num: int, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """(K, N) of the objectives, normalised, before they are weighted."""
        values = np.empty((len(self._formulas), num))
        for row, (name, formula) in zip(values, self._formulas.items(), strict=True):
            row[:] = formula(columns)
            row[:] = normalise(row, self.spec.objectives[name].normalise or self.spec.normalise)
        return values

    def columns(
        self,
        num: int,
        predictions: Mapping[str, NDArray[np.floating]],
        items: Mapping[str, Sequence[Any]],
        request: Mapping[str, Any],
    ) -> dict[str, NDArray[np.float64]]:
        """By input what formulas read of ``num`` candidates: (N,), or () of the request's.

        Raises:
            DataError: A field's value is no number.
        """
        columns = {}
        for name, each in self.inputs.items():
            if each.task is not None:
                raw = predictions[each.task].astype(np.float64)
            elif each.item is not None:
                values = items.get(each.item)
                if values is None:
                    raw = np.full(num, each.default)
                else:
                    raw = np.array([_number(value, each.item, each.default) for value in values], dtype=np.float64)
            else:
                assert each.request is not None
                raw = np.array(_number(request.get(each.request), each.request, each.default), dtype=np.float64)
            columns[name] = np.clip(raw, self.ranges[name].low, self.ranges[name].high)
        return columns

    def _check_bound(self, name: str, objective: Objective, bound: Interval) -> None:
        """See that what an objective can come to suits what is done with it."""
        weight = max((objective.weight, *(s.weights.get(name, 0.0) for s in self.spec.segments)), key=abs)
        if self.spec.combine == "product_of_powers":
            if bound.low < 0:
                raise self._error(
                    f"may be {bound.low:g}; product_of_powers wants values from 0 on, as in max({name}, 0)",
                    *("objectives", name, "formula"),
                )
            largest = max(abs(math.log(max(bound.high, 1.0))), abs(math.log(1e-12)))
            if largest * abs(weight) > math.log(1e60):
                raise self._error(
                    f"weight {weight:g} is a power that may overflow; wanted a smaller one",
                    *("objectives", name, "weight"),
                )
        elif max(abs(bound.low), abs(bound.high)) * abs(weight) > 1e150:
            raise self._error(
                f"weight {weight:g} times the formula may overflow; wanted a smaller one",
                *("objectives", name, "weight"),
            )

    def _check_ad_load(self, ad_field: str) -> None:
        """See that it is known where ads may stand."""
        loads = [each.ad_load for each in self.spec.constraints if isinstance(each, AdLoad)]
        if self.ads is not None and all(load.field not in (None, ad_field) for load in loads):
            raise self._error(
                "says what ads pay and not where they stand; add to 'constraints' something like "
                "{ad_load: {at_most: 1, per: 5, first: 3}}",
                "ads",
            )

    def _place(self, *loc: int | str) -> str:
        path = ".".join(str(part) for part in loc)
        return path if self._document is None else f"{self._document.place(*loc)}: {path}"

    def _error(self, what: str, *loc: int | str) -> SpecError:
        return SpecError(f"{self._place(*loc)}: {what}")


def _range(declared: InputSpec, kinds: Mapping[str, str]) -> tuple[float, float]:
    if declared.range is not None:
        return declared.range
    return _FIELD_RANGE if declared.task is None else _RANGES[kinds[declared.task]]


def _number(value: Any, field: str, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, int | float):
        number = float(value) if not isinstance(value, int) or abs(value) < 2**1000 else math.copysign(math.inf, value)
        if not math.isnan(number):
            return number
    raise DataError(f"field '{field}' is {value!r}, wanted a number; send one, or leave it out")
