"""Frequency caps: which ads a user has seen often enough."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.ads.spec import FrequencyCap

__all__ = ["allowed", "keys_of"]


def keys_of(cap: FrequencyCap, items: Mapping[str, Sequence[Any]]) -> list[Hashable]:
    """Values of the capped field that are among the candidates, each once: whose counts :func:`allowed` needs."""
    return list(dict.fromkeys(key for value in items.get(cap.per, ()) for key in _keys(value)))


def allowed(
    caps: Sequence[FrequencyCap],
    counts: Sequence[Mapping[Any, int]],
    items: Mapping[str, Sequence[Any]],
    num_candidates: int,
) -> NDArray[np.bool_]:
    """Which candidates a user may still see, (N,).

    A page may hold several candidates with one key, each of which may still be seen; the policy's ``at_most`` keeps
    them apart.

    Args:
        caps: That all have to be kept.
        counts: For each cap the user's impressions of its last hours by key; a key that is missing counts as 0.
        items: By field (N,) raw values; a list is capped by each of its values, None by nothing.
        num_candidates: N.
    """
    may = np.ones(num_candidates, dtype=np.bool_)
    for cap, count_by_key in zip(caps, counts, strict=True):
        if not count_by_key or cap.per not in items:
            continue
        full = {key for key, count in count_by_key.items() if count >= cap.at_most}
        if full:
            may &= np.array([full.isdisjoint(_keys(value)) for value in items[cap.per]], dtype=np.bool_)
    return may


def _keys(value: Any) -> Sequence[Hashable]:
    if value is None:
        return ()
    return [one for one in value if one is not None] if isinstance(value, list | tuple) else (value,)
