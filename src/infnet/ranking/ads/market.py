"""The market of a request: which ads take part in its auction and what they pay, and why the others stay out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.ads.auction import Auction
from infnet.ranking.ads.pacing import Pacer

__all__ = ["LONGEST_KEY", "Market", "Refusal", "Standing", "campaign_of", "pace_bids"]

Refusal: TypeAlias = Literal[
    "no campaign",
    "no budget",
    "spending unknown",
    "budget spent",
    "throttled",
    "key too long",
    "impressions unknown",
    "below floor",
    "below reserve",
    "capped",
    "no position",
]
"""Why an ad is not shown. ``no position`` took part, and the page had none left."""

LONGEST_KEY = 512
"""Characters of a campaign's id or of what a cap counts by."""


@dataclass(frozen=True)
class Standing:
    """How a request's user and the campaigns stand when it is answered."""

    time_s: float
    """Since 1970."""
    spent: Mapping[str, float] | None = None
    """By campaign since its day began; one that is missing has spent nothing. None if it is not known."""
    seen: Mapping[str, Sequence[tuple[str, int]]] | None = None
    """By field that is capped, each key that the user saw and when, in ms since 1970; None if it is not known."""
    seed: int = 0
    """Of the draws by which campaigns are throttled."""


@dataclass(frozen=True)
class Market:
    """What became of the ads among N candidates."""

    is_ad: NDArray[np.bool_]
    """(N,)."""
    auction: Auction
    """All that take part, best first; its places are among the candidates."""
    paces: NDArray[np.float64]
    """(N,) of their campaigns; 1 without a budget."""
    refused: Mapping[int, Refusal]
    """By place, those that do not take part."""


def campaign_of(value: Any) -> str | None:
    """A campaign's id as it is accounted by; None of what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if 0 < len(text) <= LONGEST_KEY else None


def pace_bids(
    places: Sequence[int],
    campaigns: Sequence[Any],
    budgets: Sequence[Any],
    pacer: Pacer,
    standing: Standing,
) -> tuple[dict[int, float], dict[int, Refusal]]:
    """By place of an ad its campaign's pace, or why it stays out.

    Of several budgets of one campaign the lowest counts.

    Args:
        places: Of the ads.
        campaigns: (N,) raw ids.
        budgets: (N,) raw budgets.
        pacer: Knows the paces.
        standing: Says what was spent.
    """
    paces: dict[int, float] = {}
    refused: dict[int, Refusal] = {}
    places_of: dict[str, list[int]] = {}
    lowest: dict[str, float] = {}
    for place in places:
        campaign, budget = campaign_of(campaigns[place]), budgets[place]
        if campaign is None:
            refused[place] = "no campaign"
        elif isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
            refused[place] = "no budget"
        else:
            places_of.setdefault(campaign, []).append(place)
            lowest[campaign] = min(lowest.get(campaign, math.inf), float(min(budget, 1e300)))
    spent, is_throttled = standing.spent, pacer.spec.method == "throttle"
    draws = np.random.default_rng(standing.seed).random(len(places_of)).tolist()
    for (campaign, own), drawn in zip(places_of.items(), draws, strict=True):
        why: Refusal | None = None
        if spent is None:
            why = "spending unknown"
        else:
            pace = pacer.pace(campaign, lowest[campaign], spent.get(campaign, 0.0), standing.time_s)
            if not pace:
                why = "budget spent"
            elif is_throttled and drawn >= pace:
                why = "throttled"
        for place in own:
            if why is not None:
                refused[place] = why
            else:
                paces[place] = pace
    return paces, refused
