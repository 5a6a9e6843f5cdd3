"""An answer as the client gets it, and as the log keeps it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set

import msgspec
import numpy as np
from numpy.typing import NDArray

from infnet.serving.budget import DEGRADATIONS, Degradation
from infnet.serving.decision import Decision
from infnet.serving.events import Sale, Served
from infnet.serving.live import LiveModel
from infnet.serving.ticket import Prepared, Ticket
from infnet.serving.wire import ItemReply, Price, RankReply

__all__ = ["ads_left_out", "finished", "items_of", "sales_of", "served", "served_unranked"]


def items_of(
    prepared: Prepared, decision: Decision, tasks: Sequence[str], predictions: NDArray[np.float64]
) -> list[ItemReply]:
    """The places of an order.

    Args:
        prepared: The request.
        decision: Its order of n candidates.
        tasks: Names of the T tasks.
        predictions: (n, T) of these candidates.
    """
    ticket, order = prepared.ticket, decision.order
    places = prepared.places[order]
    parts: list[dict[str, float]] = [{}] * len(order)
    notes: list[list[str]] = [[]] * len(order)
    if ticket.body.explain:
        parts, notes = decision.explained(), decision.notes()
    prices: list[Price | None] = [None] * len(order)
    if decision.offer is not None:
        prices = [_told(decision.offer.prices.get(place), ticket) for place in order.tolist()]
    return [
        ItemReply(ticket.items[place], score, dict(zip(tasks, row, strict=True)), part, note, price)
        for place, score, row, part, note, price in zip(
            places.tolist(), decision.scores[order].tolist(), predictions.tolist(), parts, notes, prices, strict=True
        )
    ]


def finished(
    model: LiveModel,
    ticket: Ticket,
    items: list[ItemReply],
    left_out: Set[Degradation],
    policy_version: str = "",
    ads_left_out: Mapping[str, str] | None = None,
) -> RankReply:
    """The whole answer."""
    degraded: list[str] = [step for step in DEGRADATIONS if step in left_out]
    timings = {stage: 1000 * seconds for stage, seconds in dict(ticket.seconds).items()}
    return RankReply(
        ticket.request_id,
        model.version,
        items,
        degraded,
        timings if ticket.body.timings else {},
        policy_version,
        dict(ticket.assigned.experiments),
        dict(ads_left_out or {}),
    )


def ads_left_out(prepared: Prepared, decision: Decision) -> dict[str, str]:
    """By item that is an ad and not shown, why; nothing unless it was asked."""
    if decision.offer is None or not prepared.ticket.body.explain:
        return {}
    return {prepared.ticket.items[prepared.places[place]]: why for place, why in decision.offer.refused.items()}


def sales_of(prepared: Prepared, decision: Decision) -> dict[str, Sale]:
    """By item what its position was sold for."""
    sales = {} if decision.offer is None else decision.offer.sales
    return {prepared.ticket.items[prepared.places[place]]: sale for place, sale in sales.items()}


def served(model: LiveModel, prepared: Prepared, decision: Decision, items: Sequence[ItemReply]) -> Served:
    """What was read and answered, once, so that training reads it later and nothing else."""
    ticket, user, order = prepared.ticket, prepared.known.user, decision.order.tolist()
    return Served(
        request_id=ticket.request_id,
        user_id=ticket.user,
        time_ms=ticket.time_ms,
        received_ms=ticket.time_ms,
        version=model.version,
        context=ticket.context,
        user=None if user is None or user.values is None else dict(user.values),
        histories=prepared.histories(model),
        items=[item.item_id for item in items],
        values={name: [column[i] for i in order] for name, column in prepared.values.items()},
        predictions={task: [item.tasks[task] for item in items] for task in model.ranker.tasks},
        scores=[item.score for item in items],
        degraded=sorted(ticket.degraded),
        took_ms=_ms_since(ticket.arrived),
        experiments=dict(ticket.assigned.experiments),
        policy=decision.policy_version,
        is_random=decision.is_random,
        fields={name: [column[i] for i in order] for name, column in prepared.fields.items()},
        request_fields=ticket.request_fields,
        segment=model.ranker.segment(prepared.encoded),
        sales=sales_of(prepared, decision),
    )


def served_unranked(ticket: Ticket) -> Served:
    """That a request was answered, though not by the model."""
    return Served(
        request_id=ticket.request_id,
        user_id=ticket.user,
        time_ms=ticket.time_ms,
        received_ms=ticket.time_ms,
        version=ticket.assigned.arm.holder.live.version,
        context=ticket.context,
        user=None,
        histories={},
        items=[],
        values={},
        predictions={},
        scores=[],
        degraded=["popularity_order"],
        took_ms=_ms_since(ticket.arrived),
        experiments=dict(ticket.assigned.experiments),
    )


def _told(price: Price | None, ticket: Ticket) -> Price | None:
    """A price with no more about it than was asked."""
    return price if price is None or ticket.body.explain else msgspec.structs.replace(price, ecpm=None, pace=None)


def _ms_since(arrived: float) -> float:
    return round(1000 * (time.perf_counter() - arrived), 3)
