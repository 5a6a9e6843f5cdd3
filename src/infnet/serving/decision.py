"""The order of a page: by a policy, by one task's prediction, or by chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infnet.ranking.rerank.ads_first import AdOrder
from infnet.ranking.rerank.page import Page
from infnet.serving.ads.desk import AdDesk
from infnet.serving.ads.offer import Offer, no_offer
from infnet.serving.ticket import Prepared

__all__ = ["Decision", "decide"]


@dataclass(frozen=True)
class Decision:
    """Which candidates are delivered in which order."""

    order: NDArray[np.intp]
    """(n,) places among the candidates that were scored."""
    scores: NDArray[np.float64]
    """(N,) of these candidates."""
    parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By objective its part in each score, (N,)."""
    policy_version: str = ""
    is_random: bool = False
    """Whether every order was as likely as any other."""
    page: Page | None = None
    """What re-ranking made of the scores."""
    offer: Offer | None = None
    """What became of the ads; None without an ``ads`` section."""

    def explained(self) -> list[dict[str, float]]:
        """Each objective's part in the score, of each candidate in the order."""
        columns = [part[self.order].tolist() for part in self.parts.values()]
        return [dict(zip(self.parts, row, strict=True)) for row in zip(*columns, strict=True)] or [{}] * len(self.order)

    def notes(self) -> list[list[str]]:
        """Why each item of the order stands higher or lower than its score."""
        if self.page is None:
            return [["the order was left to chance"] if self.is_random else []] * len(self.order)
        return [[*notes] for notes in self.page.notes]


def decide(
    prepared: Prepared,
    predictions: NDArray[np.floating],
    tasks: Sequence[str],
    by: str | None,
    *,
    vectors: Callable[[], NDArray[np.floating]],
    may_rerank: Callable[[], bool],
    desk: AdDesk,
) -> Decision:
    """Order the candidates of a request.

    Where the policy sells ads, they stand on re-ranked pages alone: not on those by one task, by chance, or made in a
    hurry.

    Args:
        prepared: The request; its policy decides unless ``by`` is given.
        predictions: (N, T) what the model predicts.
        tasks: Names of the T tasks.
        by: A task whose prediction is the score.
        vectors: Gives (N, D) of the candidates' items.
        may_rerank: Asked when there are scores; without time, they alone make the order.
        desk: Knows how campaigns stand.

    Raises:
        DataError: A field that the policy reads is no number, or one that says what is an ad is neither true nor false.
    """
    ticket, policy = prepared.ticket, prepared.policy
    limit, num = ticket.body.limit, len(predictions)
    ads = None if policy is None else policy.ads
    if policy is None or by is not None:
        scores = predictions[:, 0 if by is None else tasks.index(by)].astype(np.float64)
        offer = None if ads is None else no_offer(ads.is_ad(prepared.fields, num), "page by one task")
        return Decision(_others(np.argsort(-scores, kind="stable"), offer)[:limit], scores, offer=offer)
    columns = dict(zip(tasks, predictions.T, strict=True))
    scored = policy.score(columns, prepared.fields, ticket.request_fields)
    drawn = _drawn(ticket.request_id)
    seed = int(drawn * 2**53)
    is_random = drawn < policy.spec.exploration.share
    if is_random:
        offer = None if ads is None else no_offer(ads.is_ad(prepared.fields, num), "page by chance")
        order = _others(np.random.default_rng(seed).permutation(num), offer)[:limit]
        return Decision(order, scored.scores, scored.parts, policy.version, is_random=True, offer=offer)
    reranker, has_rules = policy.reranker, bool(policy.spec.constraints) or policy.spec.diversity is not None
    if not has_rules or not may_rerank():
        if has_rules:
            ticket.degraded.add("skipped_reranking")
        offer = None if ads is None else no_offer(ads.is_ad(prepared.fields, num), "no time")
        order = _others(np.argsort(-scored.scores, kind="stable"), offer)[:limit]
        return Decision(order, scored.scores, scored.parts, policy.version, offer=offer)
    market = None
    if ads is not None:
        standing = desk.standing(ads, prepared.known, ticket.time_ms, seed)
        passes = reranker.passes(scored.columns, num)
        market = ads.market(scored.columns, prepared.fields, passes, desk.pacer(ads), standing)
    page = reranker.order(
        scored.scores,
        scored.columns,
        prepared.fields,
        num if limit is None else limit,
        vectors() if reranker.wants_vectors else None,
        None if market is None else AdOrder(market.is_ad, market.auction.winners),
    )
    offer = None
    if ads is not None and market is not None:
        offer = Offer.of(ads, market, page.places, prepared.fields, ticket.time_ms, desk.day_ms(ads, ticket.time_ms))
    return Decision(page.places, scored.scores, scored.parts, policy.version, page=page, offer=offer)


def _others(order: NDArray[np.intp], offer: Offer | None) -> NDArray[np.intp]:
    """Without ads, where these are sold and not placed."""
    return order if offer is None else order[~offer.is_ad[order]]


def _drawn(request_id: str) -> float:
    """A number in [0, 1) that a request's id stands for."""
    digest = hashlib.blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
