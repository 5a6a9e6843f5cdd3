"""What became of a page's ads: those sold and for how much, and why the others are not on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.ads.market import Market, Refusal, campaign_of
from infnet.ranking.ads.sales import AdSales
from infnet.serving.events import Sale
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.wire import Price

__all__ = ["Offer", "no_offer"]

Reason: TypeAlias = Refusal | Literal["page by one task", "page by chance", "no time"]


@dataclass(frozen=True)
class Offer:
    """Of N candidates; all by place."""

    is_ad: NDArray[np.bool_]
    """(N,)."""
    refused: Mapping[int, Reason]
    """Ads that are not on the page, and why."""
    prices: Mapping[int, Price] = field(default_factory=dict)
    """Of those that are, explained."""
    sales: Mapping[int, Sale] = field(default_factory=dict)
    """The same to be charged."""

    @classmethod
    def of(
        cls,
        ads: AdSales,
        market: Market,
        page: NDArray[np.intp],
        items: Mapping[str, Sequence[Any]],
        time_ms: int,
        day_ms: int,
    ) -> Offer:
        """From an auction and the page that came of it.

        Args:
            ads: Of the policy.
            market: The auction: whoever follows an ad in it is its competitor, on the page or not.
            page: (n,) places of the candidates.
            items: By field (N,) raw values.
            time_ms: Of the request.
            day_ms: When the day of budgets began.
        """
        auction, shown = market.auction, set(page.tolist())
        refused: dict[int, Reason] = {**market.refused}
        prices, sales = dict[int, Price](), dict[int, Sale]()
        campaigns = items.get(ads.spec.campaign)
        columns = (auction.winners, auction.ecpm, auction.price_per_impression, auction.price_per_click)
        for place, ecpm, price, per_click in zip(*(column.tolist() for column in columns), strict=True):
            if place not in shown:
                refused[place] = "no position"
                continue
            pace = float(market.paces[place]) if ads.spec.budget is not None else None
            prices[place] = Price(price, per_click, ecpm, pace)
            campaign = "" if campaigns is None else campaign_of(campaigns[place]) or ""
            keys = ads.keys(items, place)
            sales[place] = Sale(price=price, campaign=campaign, day_ms=day_ms, time_ms=time_ms, keys=keys)
        return cls(market.is_ad, refused, prices, sales)

    def count(self, metrics: ServiceMetrics) -> None:
        """Count refusals, and the paces of those sold."""
        for reason, num in Counter(self.refused.values()).items():
            metrics.ads_refused.labels(reason).inc(num)
        for price in self.prices.values():
            if price.pace is not None:
                metrics.ad_pace.observe(price.pace)


def no_offer(is_ad: NDArray[np.bool_], reason: Reason) -> Offer:
    """Of a page that holds no ads."""
    return Offer(is_ad, dict.fromkeys(np.flatnonzero(is_ad).tolist(), reason))
