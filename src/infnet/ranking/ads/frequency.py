"""Frequency caps: which ads a user has seen often enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.ads.spec import FrequencyCap

__all__ = ["keys_of", "within_caps"]


def keys_of(value: Any) -> list[str]:
    """What an item's value of a capped field is counted by: nothing of None, and each of a list's values once."""
    if not isinstance(value, list | tuple):
        return [] if value is None else [str(value)]
    return list(dict.fromkeys(str(one) for one in value if one is not None))


def within_caps(
    caps: Sequence[FrequencyCap],
    counts: Sequence[Mapping[str, int]],
    items: Mapping[str, Sequence[Any]],
    ranked: NDArray[np.intp],
) -> NDArray[np.bool_]:
    """Which ads a user may still see, (n,).

    Ads are gone through from the best on, and each that may be seen counts as if it were: all of them may stand on one
    page.

    Args:
        caps: That all have to be kept.
        counts: For each cap the user's impressions of its last hours by key; a key that is missing counts as 0.
        items: By field (N,) raw values; a list is capped by each of its values, None by nothing.
        ranked: (n,) places of the ads among the candidates, best first.
    """
    may = np.ones(len(ranked), dtype=np.bool_)
    seen = [dict(count) for count in counts]
    capped = [(cap.at_most, of, items[cap.per]) for cap, of in zip(caps, seen, strict=True) if cap.per in items]
    for number, place in enumerate(ranked.tolist()):
        keys = [(of, key, at_most) for at_most, of, values in capped for key in keys_of(values[place])]
        if any(of.get(key, 0) >= at_most for of, key, at_most in keys):
            may[number] = False
            continue
        for of, key, _ in keys:
            of[key] = of.get(key, 0) + 1
    return may
