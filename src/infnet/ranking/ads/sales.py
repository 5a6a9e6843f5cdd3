"""Ads of a request: which take part in the auction, with which bids, and what they pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.ads.auction import Auction, hold_auction
from infnet.ranking.ads.spec import Ads
from infnet.ranking.rerank.inputs import Inputs

__all__ = ["AdSales"]


class AdSales:
    """The ``ads`` section of a policy at work; safe to use from several threads.

    Args:
        spec: What was declared.
        inputs: Of the policy.

    Attributes:
        names: Inputs that it reads.
        item_fields: Fields of candidates that it, budgets and frequency caps go by.

    Raises:
        SpecError: The bid is no formula or may be negative, or the click is no probability.
    """

    def __init__(self, spec: Ads, inputs: Inputs) -> None:
        self.spec = spec
        self._bid, bound = inputs.formula(spec.bid, "ads", "bid")
        if bound.low < 0:
            what = f"'{spec.bid}' may be {bound.low:g}; wanted values from 0 on, as in max({spec.bid}, 0)"
            raise inputs.error(what, "ads", "bid")
        click = inputs.range(spec.click, "ads", "click")
        if not 0 <= click.low <= click.high <= 1:
            what = f"'{spec.click}' is between {click.low:g} and {click.high:g}, wanted a probability, from 0 to 1"
            raise inputs.error(what, "ads", "click")
        self.names = tuple(sorted({*self._bid.names, spec.click}))
        campaign = () if spec.budget is None else (spec.campaign, spec.budget)
        self.item_fields = tuple(dict.fromkeys([spec.field, *campaign, *(cap.per for cap in spec.frequency)]))

    def auction(
        self,
        columns: Mapping[str, NDArray[np.float64]],
        takes_part: NDArray[np.bool_],
        factors: NDArray[np.float64] | float = 1.0,
        num_positions: int | None = None,
    ) -> Auction:
        """Sell positions to the ads among the candidates.

        Args:
            columns: By input (N,), or () of the request's.
            takes_part: (N,) which candidates are ads, and allowed by their caps.
            factors: (N,) of their campaigns' paces, which bids are multiplied by.
            num_positions: To be sold at most; as many as there are ads by default.

        Returns:
            Its winners are places among all candidates.
        """
        ads = np.flatnonzero(takes_part)
        bids = np.broadcast_to(self._bid(columns) * factors, takes_part.shape)[ads]
        clicks = np.broadcast_to(columns[self.spec.click], takes_part.shape)[ads]
        sold = hold_auction(
            bids,
            clicks,
            len(ads) if num_positions is None else num_positions,
            reserve=self.spec.reserve,
            pricing=self.spec.pricing,
        )
        return replace(sold, winners=ads[sold.winners])
