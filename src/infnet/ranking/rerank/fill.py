"""Filling the positions of a page one after the other.

At each position the feasible candidate of the highest adjusted score is placed: the score itself, or what
:mod:`infnet.ranking.rerank.diversity` makes of it. Of equal ones it is the one of the higher score, then the earlier
candidate. Feasible is who keeps all constraints together with the page so far:

- ``at_most``, ``spacing`` and ``ad_load`` look back from the position; that ones after it are kept is seen to there.
- ``at_least`` refuses everybody else once the remaining positions of its block are as many as it still lacks, and
  nobody if no wanted candidate is left. It does not look ahead: wanted items that other constraints will refuse count.

Where nobody is feasible, constraints are given up for this position in the reverse order of their declaration until
somebody is; then those that refuse only some of these are taken up again, in the order of their declaration. A page is
never shorter than it could be, and the first constraint is the last to go. Firm constraints are never given up: where
they refuse everybody, the page ends.

A page's limit only cuts it off: a shorter page is the beginning of a longer one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.constraints import Mask, Rule
from infnet.ranking.rerank.diversity import Diversifier

__all__ = ["Placed", "Refusals", "fill"]

Refusals: TypeAlias = list[tuple[int, Mask]]
"""Places of rules, and which candidates (N,) each refuses; in the order of their declaration."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A position, and what it was filled by."""

    candidate: int
    adjusted: NDArray[np.float64] | None
    """Adjusted scores (N,), -inf of those placed before; None without diversity."""
    refusals: Refusals
    """That were kept."""
    gave_up: Sequence[int]
    """Rules that were not."""


def fill(
    num: int, limit: int, rules: Sequence[Rule], diversifier: Diversifier | None, firm: Collection[int] = ()
) -> list[Placed]:
    """Place candidates.

    Args:
        num: Candidates, numbered from the highest score on; of equal ones the earlier is first.
        limit: Positions at most.
        rules: In the order of their declaration.
        diversifier: None to go by score.
        firm: Places of the rules that are never given up.
    """
    page: list[Placed] = []
    is_open = np.ones(num, dtype=np.bool_)
    for _ in range(min(num, limit)):
        refusals = [(number, who) for number, rule in enumerate(rules) if (who := rule.refused()) is not None]
        adjusted = None if diversifier is None else diversifier.adjusted()
        gave_up: list[int] = []
        chosen = _best(is_open, adjusted)
        if any(refused[chosen] for _, refused in refusals):  # otherwise, as mostly, there is no more to look at
            feasible = is_open
            for _, refused in refusals:
                feasible = feasible > refused
            chosen = _best(feasible, adjusted)
            if not feasible[chosen]:
                feasible, refusals, gave_up = _relaxed(is_open, sorted(refusals, key=lambda each: each[0] not in firm))
                if not {*gave_up}.isdisjoint(firm):
                    break
                chosen = _best(feasible, adjusted)
        page.append(Placed(chosen, adjusted, refusals, gave_up))
        is_open[chosen] = False
        for rule in rules:
            rule.place(chosen)
        if diversifier is not None:
            diversifier.place(chosen)
    return page


def _best(feasible: Mask, adjusted: NDArray[np.float64] | None) -> int:
    """The first one of the highest adjusted score; one who is not feasible if nobody is."""
    if adjusted is None:
        return int(feasible.argmax())
    best = int(adjusted.argmax())
    return best if feasible[best] else int(np.where(feasible, adjusted, -np.inf).argmax())


def _relaxed(is_open: Mask, refusals: Refusals) -> tuple[Mask, Refusals, list[int]]:
    """Who is feasible under the constraints that can be kept, these, and the others."""
    feasible, kept, gave_up = is_open, [], []
    for number, refused in refusals:
        stricter = feasible > refused
        if stricter.any():
            feasible = stricter
            kept.append((number, refused))
        else:
            gave_up.append(number)
    return feasible, kept, gave_up
