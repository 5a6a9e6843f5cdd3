"""Auctions of ad positions: who wins, in which order, and what each pays.

Ads are ranked by eCPM, 1000 times the value of an impression. In the generalised second-price auction (Edelman,
Ostrovsky and Schwarz, "Internet Advertising and the Generalized Second-Price Auction", AER 2007; Varian, "Position
auctions", 2007), a winner pays the least value with which it would have kept its position: that of the next ad, or the
reserve. With one position that is Vickrey's auction, where nobody gains by bidding anything but the true value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError

__all__ = ["Auction", "hold_auction"]


@dataclass(frozen=True)
class Auction:
    """Winners, best first: (n,) each."""

    winners: NDArray[np.intp]
    """Places among the ads."""
    ecpm: NDArray[np.float64]
    """Of their values, not of what they pay."""
    price_per_impression: NDArray[np.float64]
    """Never above the value, never below the reserve."""
    price_per_click: NDArray[np.float64]
    """Whose mean over impressions is the price per impression if click probabilities are right; 0 of an ad that is
    never clicked."""


def hold_auction(
    values: NDArray[np.floating],
    click_probs: NDArray[np.floating],
    num_positions: int,
    *,
    reserve: float = 0.0,
    pricing: Literal["first_price", "second_price"] = "second_price",
) -> Auction:
    """Sell positions to ads.

    A price does not depend on how many positions are sold after it: with as many positions as ads, all have one.

    Args:
        values: (N,) of an impression, in a currency; of equal ones the earlier wins.
        click_probs: (N,).
        num_positions: To be sold at most.
        reserve: The least price of an impression; ads of a lower value cannot win.
        pricing: ``first_price``: everybody pays the value.

    Raises:
        DataError: A value is negative or not finite, or a probability is none; names the ad.
    """
    _check("value of an impression", values, np.inf)
    _check("click probability", click_probs, 1.0)
    ranked = np.argsort(-values, kind="stable")
    ranked = ranked[values[ranked] >= reserve]
    winners = ranked[: max(num_positions, 0)]
    own = values[winners].astype(np.float64)
    price = own
    if pricing == "second_price":
        following = np.append(values[ranked].astype(np.float64), reserve)
        price = following[1 : len(winners) + 1]
    clicked = click_probs[winners].astype(np.float64)
    per_click = np.divide(price, clicked, out=np.zeros(len(winners)), where=clicked > 0)
    return Auction(winners, 1000.0 * own, price, per_click)


def _check(what: str, numbers: NDArray[np.floating], highest: float) -> None:
    bad = np.flatnonzero(~((numbers >= 0) & (numbers <= highest) & np.isfinite(numbers)))
    if bad.size:
        wanted = "0 or more" if highest == np.inf else f"0 to {highest:g}"
        raise DataError(f"{what} of ad {bad[0]} is {numbers[bad[0]]}, wanted {wanted}")
