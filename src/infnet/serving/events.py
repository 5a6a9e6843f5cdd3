"""What is written to the event log: requests as they were served, and what happened to them afterwards."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["IMPRESSION", "Event", "Sale", "Served", "ServedHistory"]

IMPRESSION = "impression"
"""The type of the event that an item was seen."""


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """A position that an ad was sold, to be paid for when the ad is seen."""

    price: float
    """Of the impression, in the policy's currency."""
    campaign: str = ""
    """That pays; empty of an ad that has none."""
    day_ms: int
    """When the day of budgets began that pays, in ms since 1970."""
    time_ms: int
    """When it was sold."""
    keys: dict[str, list[str]] = {}
    """By field that is capped, what the impression counts by."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An impression, or what a user did with one: its type is a task's or a behaviour's event type."""

    event_id: str
    """Two events of one id are one."""
    request_id: str
    item_id: str
    type: str
    time_ms: int
    value: float = 1.0
    user_id: str | None = None
    """Of the request's user if the caller said so."""
    received_ms: int
    """When the log took it; never falls within one writer's log, whatever the clock does."""
    sale: Sale | msgspec.UnsetType = msgspec.UNSET
    """Of an ad's impression; not there if it was not known when the event came."""


class ServedHistory(msgspec.Struct, frozen=True):
    """Past events of one behaviour as a request saw them, most recent first."""

    items: list[str]
    times: list[int]


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it was answered, in raw values: whatever model learns from it later reads what was read then."""

    request_id: str
    user_id: str
    time_ms: int
    received_ms: int
    version: str
    """Of the model."""
    context: dict[str, Any]
    user: dict[str, Any] | None
    """Raw features from the store; None if those of the bundle were read."""
    histories: dict[str, ServedHistory]
    """By behaviour."""
    items: list[str]
    """The items that the model chose, best first; none if the request was answered by popularity."""
    values: dict[str, list[Any]]
    """Raw values of candidate features, one per item."""
    predictions: dict[str, list[float]]
    """By task, one per item."""
    scores: list[float]
    degraded: list[str]
    took_ms: float = 0.0
    """From its first byte to its answer."""
    experiments: dict[str, str] = {}
    """Variant by experiment, of those that the user is in."""
    policy: str = ""
    """Version of the policy; empty if there is none."""
    is_random: bool = False
    """Whether the order was left to chance, every order being as likely as any other."""
    fields: dict[str, list[Any]] = {}
    """By field of candidates that a policy reads, one value per item."""
    request_fields: dict[str, Any] = {}
    """By field of requests that a policy reads."""
    segment: str = ""
    """Of calibration; empty if the model's bundle tells none apart."""
    sales: dict[str, Sale] = {}
    """By item that is an ad, what its position was sold for."""
