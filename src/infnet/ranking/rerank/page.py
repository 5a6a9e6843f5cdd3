"""The page: which candidates stand at which positions, and why they do not stand where their scores would have them.

Items below a floor are not shown. The others are placed as :mod:`infnet.ranking.rerank.fill` defines it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError
from infnet.ranking.combine import normalise
from infnet.ranking.formula import Formula
from infnet.ranking.rerank.ads_first import AdOrder, AdsFirst
from infnet.ranking.rerank.constraints import AdRule, QuotaRule, Rule, SharedValueRule
from infnet.ranking.rerank.diversity import Diversifier, diversifier
from infnet.ranking.rerank.fill import Placed, fill
from infnet.ranking.rerank.inputs import Inputs
from infnet.ranking.rerank.reasons import reasons
from infnet.ranking.rerank.similarity import by_fields, by_vectors
from infnet.ranking.rerank.spec import AdLoad, AtLeast, AtMost, Constraint, Diversity, Floor, Placement, Spacing
from infnet.ranking.rerank.values import Fields

__all__ = ["Page", "Reranker"]

Columns: TypeAlias = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Page:
    """An order of n candidates."""

    places: NDArray[np.intp]
    """(n,) by position the place among the candidates."""
    gave_up: tuple[str, ...]
    """Constraints that could not be kept and where, such as ``spacing 2 per topic at positions 7-9, 12``."""
    num_shown: int
    """Candidates that pass the floors, on the page or not."""
    _placed: Sequence[Placed] = field(repr=False)
    _labels: Sequence[str] = field(repr=False)
    _firm: Sequence[int] = field(default=(), repr=False)

    @cached_property
    def notes(self) -> tuple[tuple[str, ...], ...]:
        """By position why it stands higher or lower than its score alone would have it.

        Such as ``held back by spacing 2 per topic`` or ``lifted by mmr 0.3``; empty exactly where it stands as its
        score has it among those that pass the floors. That others stand before an ad which has to wait says nothing of
        them. Worked out when it is asked for.
        """
        silent = {f"lifted by {self._labels[number]}" for number in self._firm}
        found = reasons(self._placed, self.num_shown, self._labels)
        return tuple(tuple(note for note in notes if note not in silent) for notes in found) if silent else found


class Reranker:
    """What a policy makes of scored candidates; safe to use from several threads.

    Args:
        constraints: What was declared.
        diversity: None to go by score.
        inputs: Of the policy.
        ad_field: Of an item, true if it is an ad.

    Attributes:
        item_fields: Fields of candidates that it compares.
        names: Inputs that it reads.
        wants_vectors: Whether items are compared by their vectors.

    Raises:
        SpecError: A formula is none, or reads an unknown name, or a floor is above all values.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        diversity: Diversity | None,
        inputs: Inputs,
        *,
        ad_field: str = "is_ad",
    ) -> None:
        self._diversity, self._ad_field = diversity, ad_field
        self._floors = [each for each in constraints if isinstance(each, Floor)]
        self._constraints: list[Placement] = [each for each in constraints if not isinstance(each, Floor)]
        self._labels = [*map(str, self._constraints), str(diversity)]
        self._wanted: dict[str, Formula] = {}
        names: list[str] = []
        for index, each in enumerate(constraints):
            if isinstance(each, Floor):
                highest = inputs.range(each.floor, "constraints", index, "floor").high
                if each.at_least > highest:
                    what = f"{each.floor} is at most {highest:g} and never {each.at_least:g}; wanted a lower floor"
                    raise inputs.error(what, "constraints", index, "at_least")
                names.append(each.floor)
            elif isinstance(each, AtLeast):
                self._wanted[each.where], _ = inputs.formula(each.where, "constraints", index, "where")
                names += sorted(self._wanted[each.where].names)
        self.names = tuple(dict.fromkeys(names))
        by = diversity.by if diversity is not None else None
        fields = [self._field(each) for each in self._constraints if not isinstance(each, AtLeast)]
        self.item_fields = tuple(dict.fromkeys([*fields, *(by or ())]))
        self.wants_vectors = diversity is not None and by is None

    def order(
        self,
        scores: NDArray[np.float64],
        columns: Columns,
        items: Mapping[str, Sequence[Any]],
        limit: int,
        vectors: NDArray[np.floating] | None = None,
        ads: AdOrder | None = None,
    ) -> Page:
        """A page.

        Args:
            scores: (N,), finite.
            columns: By input (N,), or () of the request's.
            items: By field one raw value per candidate; None where it has none, as of a field that is missing.
            limit: Positions at most.
            vectors: (N, D) of the items, finite; zeros of one that has none.
            ads: Stand as early as constraints let them, whatever their scores, and never where the ad load does not.
                None: an ad is an item like any other.

        Raises:
            DataError: A field's value cannot be compared, or vectors are missing.
        """
        shown, num_ads = self._shown(scores, columns, ads)
        fields = Fields(items, len(scores), shown)
        rules = [self._rule(each, scores, columns, fields) for each in self._constraints]
        firm = [number for number, each in enumerate(self._constraints) if ads is not None and isinstance(each, AdLoad)]
        diversifier = self._diversifier(scores[shown], num_ads, fields, vectors)
        placed = fill(len(shown), limit, rules, diversifier, firm)
        places = shown[np.array([each.candidate for each in placed], dtype=np.intp)]
        return Page(places, self._gave_up(placed), len(shown), placed, self._labels, firm)

    def passes(self, columns: Columns, num_candidates: int) -> NDArray[np.bool_]:
        """Which candidates pass all floors, (N,)."""
        may = np.ones(num_candidates, dtype=np.bool_)
        for floor in self._floors:
            may &= columns[floor.floor] >= floor.at_least
        return may

    def _shown(
        self, scores: NDArray[np.float64], columns: Columns, ads: AdOrder | None
    ) -> tuple[NDArray[np.intp], int]:
        """Candidates that pass all floors, best first, the ads before the others; and how many are ads."""
        order: NDArray[np.intp] = np.argsort(-scores, kind="stable")
        passes = self.passes(columns, len(scores))
        if ads is None:
            return order[passes[order]], 0
        first = ads.places[passes[ads.places]]
        return np.concatenate([first, order[(passes & ~ads.is_ad)[order]]]), len(first)

    def _rule(self, each: Placement, scores: NDArray[np.float64], columns: Columns, fields: Fields) -> Rule:
        if isinstance(each, AtLeast):
            is_wanted = np.broadcast_to(self._wanted[each.where](columns) != 0, scores.shape)
            return QuotaRule(each.at_least, each.within, is_wanted[fields.shown])
        if isinstance(each, AdLoad):
            return AdRule(each, fields.truth(self._field(each)))
        at_most, within = (each.at_most, each.within) if isinstance(each, AtMost) else (1, each.spacing + 1)
        return SharedValueRule(fields[each.per], len(fields.shown), at_most, within)

    def _diversifier(
        self, scores: NDArray[np.float64], num_ads: int, fields: Fields, vectors: NDArray[np.floating] | None
    ) -> Diversifier | None:
        spec = self._diversity
        if spec is None or not len(scores):
            return None
        if spec.by is not None:
            similarity = by_fields([fields[name] for name in spec.by])
        elif vectors is not None:
            similarity = by_vectors(vectors[fields.shown], spec)
        else:
            raise DataError(
                "diversity compares vectors of the items, and there are none; declare the fields it is 'by'"
            )
        relevance = np.zeros(len(scores))
        if num_ads < len(scores):
            relevance[num_ads:] = normalise(scores[num_ads:], "minmax")
        made = diversifier(spec, relevance, similarity)
        return AdsFirst(made, num_ads) if num_ads else made

    def _gave_up(self, page: Sequence[Placed]) -> tuple[str, ...]:
        positions: dict[int, list[int]] = {}
        for position, placed in enumerate(page, start=1):
            for rule in placed.gave_up:
                positions.setdefault(rule, []).append(position)
        return tuple(f"{self._labels[rule]} at {_shown(at)}" for rule, at in sorted(positions.items()))

    def _field(self, each: AtMost | Spacing | AdLoad) -> str:
        return (each.ad_load.field or self._ad_field) if isinstance(each, AdLoad) else each.per


def _shown(positions: list[int]) -> str:
    """``positions 3-5, 9``, from a rising list."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][1] == position - 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"position{'s' if len(positions) > 1 else ''} {text}"
