"""A service whose policy sells ads, and requests to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infnet.export.bundle import Bundle
from infnet.serving.policy_file import PolicyFile
from service_parts import Parts, holder_of

POLICY = """
inputs: {bid: {item: bid_usd, range: [0, 100]}}
objectives: {engagement: {formula: p_click + p_like}}
ads:
  bid: bid * p_click
  click: p_click
  reserve: 0.001
  budget: daily_budget
  pacing: {first: 1.0, every_s: 3600, proportional: 0, integral: 0}
  frequency: [{at_most: 3, per: campaign_id, hours: 24}]
constraints: [{ad_load: {at_most: 1, per: 3, first: 2}}]
"""
"""Campaigns bid in full until their budgets are spent."""

ITEMS = [1, 2, 3, 4, 11, 12, 13]
"""The last three are ads."""
AD_FIELDS: dict[str, list[Any]] = {
    "is_ad": [False] * 4 + [True] * 3,
    "bid_usd": [None] * 4 + [5, 9, 2],
    "campaign_id": [None] * 4 + ["a", "b", "c"],
    "daily_budget": [None] * 4 + [1000] * 3,
}


def ad_parts(bundle: Bundle, directory: Path, text: str = POLICY, **options: Any) -> Parts:
    """Its spending is read once; ``parts.policy`` is the file's."""
    directory.mkdir(exist_ok=True)
    path = directory / "policy.yaml"
    path.write_text(text)
    policy = PolicyFile(path, holder_of(bundle), every_s=0.02)
    parts = Parts(bundle, directory, policy=policy, **options)
    parts.policy = policy
    parts.feed()
    parts.desk.spending.refresh()
    return parts


def page(parts: Parts, user: str = "u1", **fields: Any) -> Any:
    """The explained answer to a request with three ads; fields of items may be given anew."""
    features = {**AD_FIELDS, **fields.pop("item_features", {})}
    return parts.answer(user, ITEMS, **{"item_features": features, "explain": True, **fields})


def ads_of(reply: Any) -> list[str]:
    """The ads on a page, in their order."""
    return [item.item_id for item in reply.items if item.price is not None]


def see(parts: Parts, reply: Any, *items: str, **event: Any) -> Any:
    """Tell of impressions, of all ads of a page unless it is said."""
    events = (
        {"request_id": reply.request_id, "item_id": i, "type": "impression", **event} for i in items or ads_of(reply)
    )
    return parts.tell(*events)


def spent(parts: Parts) -> dict[str, float]:
    """Today, as the store has it."""
    (ads,) = parts.desk._policies()
    return parts.store.behind.accounts.spent([parts.desk.day_ms(ads, parts.ticket().time_ms)])[0]
