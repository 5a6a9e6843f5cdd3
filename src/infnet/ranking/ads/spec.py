"""What a policy says about ads."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Ads", "FrequencyCap", "Pacing"]

_Text: TypeAlias = Annotated[str, Field(min_length=1)]
_Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class FrequencyCap(_Declared):
    """``{at_most: 3, per: campaign_id, hours: 24}``: how often a user sees the same."""

    at_most: Annotated[int, Field(ge=1)]
    """Impressions."""
    per: _Text
    """The item's field whose value they share; a list counts for each of its values, and None for nothing."""
    hours: Annotated[float, Field(gt=0)]
    """Before now that count."""

    def __str__(self) -> str:
        return f"at_most {self.at_most} per {self.per} in {self.hours:g} h"


class Pacing(_Declared):
    """How a campaign's budget lasts the day: see :mod:`infnet.ranking.ads.pacing`."""

    method: Literal["bid", "throttle"] = "bid"
    """``bid``: bids are lowered. ``throttle``: a campaign stays out of some auctions and bids in full in the others."""
    hourly_traffic: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=24, max_length=24)] | None = (
        None
    )
    """Traffic of each hour of a day, in any unit; the budget is spent in proportion. Evenly by default."""
    lowest: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Multiplier: a campaign that is ahead of its plan still bids a little, and so learns what it would spend."""
    first: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Multiplier of a campaign that has spent nothing before."""
    every_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Between corrections."""
    proportional: Annotated[float, Field(ge=0)] = 10.0
    integral: Annotated[float, Field(ge=0)] = 0.1
    derivative: Annotated[float, Field(ge=0)] = 0.0
    """Gains on the relative error of spending, in steps of the multiplier's logarithm."""
    day_starts_at_hour: Annotated[float, Field(ge=0, lt=24)] = 0.0
    """UTC; when budgets begin anew."""


class Ads(_Declared):
    """``{bid: "bid_usd * p_click", click: p_click, reserve: 0.001, pricing: second_price}``."""

    field: _Text = "is_ad"
    """Of an item, true if it is an ad."""
    bid: _Text
    """A formula over the policy's inputs: what an impression is worth to the advertiser, in a currency. For a bid per
    click it is ``bid * p_click``; per order, ``bid * p_click * p_order``. eCPM is 1000 times it."""
    click: _Name
    """The input that is the probability of a click."""
    reserve: Annotated[float, Field(ge=0)] = 0.0
    """The least that an impression is sold for, in the same currency; ads worth less are not shown."""
    pricing: Literal["first_price", "second_price"] = "second_price"
    campaign: _Text = "campaign_id"
    """The item's field that budgets go by."""
    budget: _Text | None = None
    """The item's field with its campaign's budget of a day, in the same currency; unlimited by default."""
    pacing: Pacing = Pacing()
    frequency: tuple[FrequencyCap, ...] = ()
