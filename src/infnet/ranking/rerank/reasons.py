"""Why items of a page stand higher or lower than their scores alone would have them.

An item is held back by a constraint that refused it a position which then went to somebody of a lower adjusted score,
and by diversity where one of a lower score had a higher adjusted one. It is lifted by what held others back from its
position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from infnet.ranking.rerank.constraints import Mask
from infnet.ranking.rerank.fill import Placed

__all__ = ["reasons"]


def reasons(page: Sequence[Placed], num: int, labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """By position what an item is held back or lifted by; nothing of one that stands where its score has it.

    Args:
        page: As it was filled.
        num: Candidates, numbered from the highest score on.
        labels: Of the rules, then of diversity.
    """
    held_back = np.zeros((len(labels), num), dtype=np.bool_)
    is_open = np.ones(num, dtype=np.bool_)
    notes = []
    for position, placed in enumerate(page):
        chosen = placed.candidate
        if chosen < position:
            held = np.flatnonzero(held_back[:, chosen]).tolist()
            notes.append(tuple(f"held back by {labels[reason]}" for reason in held))
        lifted = []
        for reason, passed in _passed_over(placed, is_open, len(labels) - 1):
            held_back[reason, : len(passed)] |= passed
            lifted.append(f"lifted by {labels[reason]}")
        if chosen >= position:
            notes.append(tuple(lifted) if chosen > position else ())
        is_open[chosen] = False
    return tuple(notes)


def _passed_over(placed: Placed, is_open: Mask, diversity: int) -> Iterator[tuple[int, Mask]]:
    """Reasons, and whom (the first so many candidates) each kept from a position."""
    chosen, adjusted = placed.candidate, placed.adjusted
    better = is_open[:chosen]  # by score
    if adjusted is not None:
        worse = better & (adjusted[:chosen] < adjusted[chosen])
        if worse.any():
            yield diversity, worse
        better = adjusted > adjusted[chosen]
        better[:chosen] |= adjusted[:chosen] == adjusted[chosen]
    if better.any():
        for number, refused in placed.refusals:
            passed = better & refused[: len(better)]
            if passed.any():
                yield number, passed
