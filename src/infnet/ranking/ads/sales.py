"""Ads of a request: which take part in the auction, with which bids, and what they pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError
from infnet.ranking.ads.auction import Auction, hold_auction
from infnet.ranking.ads.frequency import keys_of, within_caps
from infnet.ranking.ads.market import LONGEST_KEY, Market, Refusal, Standing, pace_bids
from infnet.ranking.ads.pacing import Pacer
from infnet.ranking.ads.spec import Ads
from infnet.ranking.rerank.inputs import Inputs

__all__ = ["AdSales"]

_HIGHEST = 1e12


class AdSales:
    """The ``ads`` section of a policy at work; safe to use from several threads.

    Args:
        spec: What was declared.
        inputs: Of the policy.

    Attributes:
        names: Inputs that it reads.
        item_fields: Fields of candidates that it, budgets and frequency caps go by.
        hours_by_field: By field that is capped, how far back impressions count.

    Raises:
        SpecError: The bid is no formula, may be negative or beyond any price, or the click is no probability.
    """

    def __init__(self, spec: Ads, inputs: Inputs) -> None:
        self.spec = spec
        self._bid, bound = inputs.formula(spec.bid, "ads", "bid")
        if bound.low < 0:
            what = f"'{spec.bid}' may be {bound.low:g}; wanted values from 0 on, as in max({spec.bid}, 0)"
            raise inputs.error(what, "ads", "bid")
        if bound.high > _HIGHEST:
            what = f"'{spec.bid}' may be {bound.high:g}; wanted at most {_HIGHEST:g}; narrow its inputs' ranges"
            raise inputs.error(what, "ads", "bid")
        click = inputs.range(spec.click, "ads", "click")
        if not 0 <= click.low <= click.high <= 1:
            what = f"'{spec.click}' is between {click.low:g} and {click.high:g}, wanted a probability, from 0 to 1"
            raise inputs.error(what, "ads", "click")
        self.names = tuple(sorted({*self._bid.names, spec.click}))
        self.hours_by_field: dict[str, float] = {}
        for cap in spec.frequency:
            self.hours_by_field[cap.per] = max(cap.hours, self.hours_by_field.get(cap.per, 0.0))
        budget = () if spec.budget is None else (spec.budget,)
        self.item_fields = tuple(dict.fromkeys([spec.field, spec.campaign, *budget, *self.hours_by_field]))

    def is_ad(self, items: Mapping[str, Sequence[Any]], num_candidates: int) -> NDArray[np.bool_]:
        """Which candidates are ads, (N,).

        Raises:
            DataError: A candidate's field is neither true nor false.
        """
        values = items.get(self.spec.field, [None] * num_candidates)
        for value in values:
            if value is not None and (not isinstance(value, bool | int | float) or value not in (0, 1)):
                raise DataError(f"field '{self.spec.field}' is {value!r}, wanted true or false")
        return np.fromiter(map(bool, values), dtype=np.bool_, count=num_candidates)

    def market(
        self,
        columns: Mapping[str, NDArray[np.float64]],
        items: Mapping[str, Sequence[Any]],
        passes: NDArray[np.bool_],
        pacer: Pacer,
        standing: Standing,
    ) -> Market:
        """Hold the auction of a request's positions among the ads that may be shown.

        Args:
            columns: By input (N,), or () of the request's.
            items: By field (N,) raw values.
            passes: (N,) which candidates the page's floors let through.
            pacer: Of campaigns.
            standing: What was spent and seen.

        Raises:
            DataError: A candidate's field is neither true nor false.
        """
        spec, num = self.spec, len(passes)
        is_ad = self.is_ad(items, num)
        ads = np.flatnonzero(is_ad).tolist()
        factors, paces, refused = np.ones(num), np.ones(num), dict[int, Refusal]()
        if spec.budget is not None and ads:
            nothing = [None] * num
            campaigns, budgets = items.get(spec.campaign, nothing), items.get(spec.budget, nothing)
            pace_by_place, refused = pace_bids(ads, campaigns, budgets, pacer, standing)
            paces[list(pace_by_place)] = list(pace_by_place.values())
            if spec.pacing.method == "bid":
                factors = paces
        for place in np.flatnonzero(is_ad & ~passes).tolist():
            refused.setdefault(place, "below floor")
        takes_part = is_ad.copy()
        takes_part[list(refused)] = False
        ranked = self.auction(columns, takes_part, factors).winners
        takes_part[ranked] = False
        for place in np.flatnonzero(takes_part).tolist():
            refused[place] = "below reserve"
        refused |= self._capped(ranked, items, standing)
        takes_part = is_ad.copy()
        takes_part[list(refused)] = False
        return Market(is_ad, self.auction(columns, takes_part, factors), paces, refused)

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

    def keys(self, items: Mapping[str, Sequence[Any]], place: int) -> dict[str, list[str]]:
        """What an impression of a candidate counts by, by field that is capped."""
        found = {field: keys_of(items[field][place]) for field in self.hours_by_field if field in items}
        return {field: keys for field, keys in found.items() if keys}

    def _capped(
        self, ranked: NDArray[np.intp], items: Mapping[str, Sequence[Any]], standing: Standing
    ) -> dict[int, Refusal]:
        """Why a user may not see some of the ads, which are ranked best first."""
        caps, why = self.spec.frequency, dict[int, Refusal]()
        known = {} if standing.seen is None else standing.seen
        for field in self.hours_by_field.keys() & items.keys():
            for place in ranked.tolist():
                keys = keys_of(items[field][place])
                if any(len(key) > LONGEST_KEY for key in keys):
                    why[place] = "key too long"
                elif keys and field not in known:
                    why.setdefault(place, "impressions unknown")
        left = np.array([place for place in ranked.tolist() if place not in why], dtype=np.intp)
        counts = [
            Counter(key for key, at in known.get(cap.per, ()) if at > 1000 * (standing.time_s - 3600 * cap.hours))
            for cap in caps
        ]
        for place in left[~within_caps(caps, counts, items, left)].tolist():
            why[place] = "capped"
        return why
