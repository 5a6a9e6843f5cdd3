"""A request on its way through the service, and what it is answered from."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError, did_you_mean
from infnet.export.engine import EncodedRequest
from infnet.ranking.policy import Policy
from infnet.serving.arms import Assigned
from infnet.serving.budget import Degradation
from infnet.serving.encoding import RankRequest, UserState
from infnet.serving.events import ServedHistory
from infnet.serving.features import Known
from infnet.serving.live import LiveModel
from infnet.serving.wire import RankBody, RankReply

__all__ = ["Prepared", "Ticket", "asks_items", "by_prior", "prepare", "seen_since", "told_apart"]

_V = TypeVar("_V")


@dataclass(eq=False)
class Ticket:
    """A request on its way through the service."""

    body: RankBody
    request_id: str
    user: str
    assigned: Assigned
    items: list[str]
    values: dict[str, list[Any]]
    """Raw values of candidate features, one per item, as the request brought them."""
    context: dict[str, Any]
    """Raw values of context features."""
    fields: dict[str, list[Any]]
    """By field of candidates that a policy reads, one value per item, as the request brought them."""
    request_fields: dict[str, Any]
    """By field of requests that a policy reads."""
    arrived: float
    """By ``time.perf_counter``."""
    deadline: float
    """By the same clock."""
    time_ms: int
    """When it arrived, in ms since 1970."""
    is_answered: bool = False
    """It was given up, and answered for want of time."""
    degraded: set[Degradation] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; whoever works on the ticket adds to it."""
    _offered: RankReply | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, reply: RankReply) -> bool:
        """Decide upon an answer, unless the ticket was given up."""
        with self._lock:
            if self.is_answered:
                return False
            self._offered = reply
            return True

    def give_up(self) -> RankReply | None:
        """Want no answer any more, unless one was decided upon: that."""
        with self._lock:
            self.is_answered = self._offered is None
            return self._offered


@dataclass(frozen=True)
class Prepared:
    """A ticket whose features are known."""

    ticket: Ticket
    known: Known
    state: UserState
    places: NDArray[np.intp]
    """Of the candidates to score."""
    values: dict[str, list[Any]]
    """Raw values of candidate features, one per candidate to score."""
    policy: Policy | None
    """Makes the order."""
    fields: dict[str, list[Any]]
    """By field that the policy reads, one value per candidate to score."""
    encoded: EncodedRequest

    def histories(self, model: LiveModel) -> dict[str, ServedHistory]:
        """As they were read, in raw keys."""
        if self.known.user is not None:
            return {name: ServedHistory(h.items, h.times) for name, h in self.known.user.histories.items()}
        bundle = model.ranker.bundle
        pairs = zip(bundle.layout.behaviours, self.state.histories, self.state.times, strict=True)
        return {b.name: ServedHistory(bundle.items.keys(items), times.tolist()) for b, items, times in pairs}


def by_prior(model: LiveModel, ticket: Ticket) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Candidates' places (N,), the highest prior score first, and the priors in the order of the candidates."""
    prior = model.prior[model.ranker.bundle.items.find(ticket.items)]
    return np.argsort(-prior, kind="stable"), prior


def prepare(model: LiveModel, ticket: Ticket, known: Known, num: int) -> Prepared:
    """Encode a request of ``num`` candidates, those with the highest prior scores.

    Raises:
        DataError: A feature is unknown, or a value cannot be read.
    """
    places = np.arange(len(ticket.items))
    if num < len(places):
        places = np.sort(by_prior(model, ticket)[0][:num])
        ticket.degraded.add("capped_candidates")
    if known.is_last_known:
        ticket.degraded.add("last_known_features")
    encoder, file = model.ranker.encoder, ticket.assigned.arm.policy
    policy = None if file is None else file.live
    fields = {} if policy is None else _merged(policy.item_fields, ticket.fields, known, places)
    try:
        values, state, encoded = _encoded(model, ticket, known, places)
    except DataError:
        # The store may hold what was put there for another model; if it was the request's, it is told once more.
        user = known.user
        if user is not None and user.values is not None:
            user = replace(user, values=encoder.readable(user.values))
        items = [None if item is None else encoder.readable(item) for item in known.items]
        known = replace(known, user=user, items=items)
        values, state, encoded = _encoded(model, ticket, known, places)
    return Prepared(ticket, known, state, places, values, policy, fields, encoded)


def _encoded(
    model: LiveModel, ticket: Ticket, known: Known, places: NDArray[np.intp]
) -> tuple[dict[str, list[Any]], UserState, EncodedRequest]:
    encoder = model.ranker.encoder
    state = encoder.snapshot(ticket.user) if known.user is None else encoder.recall(ticket.user, known.user)
    values = _merged([*dict.fromkeys((*ticket.values, *model.dynamic_features))], ticket.values, known, places)
    request = RankRequest(state, [ticket.items[i] for i in places], ticket.context, values, ticket.time_ms)
    return values, state, encoder.encode(request)


def _merged(
    names: Sequence[str], given: Mapping[str, list[Any]], known: Known, places: NDArray[np.intp]
) -> dict[str, list[Any]]:
    """Raw values by name: the request's own, and where it has none the store's; without names that neither has."""
    values = {name: [given[name][i] for i in places] for name in names if name in given}
    if known.items:
        held = [known.items[i] for i in places]
        for name in names:
            found = [None if item is None else item.get(name) for item in held]
            if name not in values:
                values[name] = found
            else:
                values[name] = [b if a is None else a for a, b in zip(values[name], found, strict=True)]
    return values


def asks_items(model: LiveModel, ticket: Ticket) -> bool:
    """Whether anybody reads what the store has of items."""
    policy = ticket.assigned.arm.policy
    return bool(model.dynamic_features) or (policy is not None and bool(policy.live.item_fields))


def seen_since(ticket: Ticket) -> dict[str, int]:
    """By field that the policy caps, since when impressions count, in ms since 1970."""
    policy = ticket.assigned.arm.policy
    ads = None if policy is None else policy.live.ads
    hours = {} if ads is None else ads.hours_by_field
    return {field: ticket.time_ms - round(3_600_000 * each) for field, each in hours.items()}


def told_apart(given: Mapping[str, _V], features: Set[str], fields: Set[str]) -> tuple[dict[str, _V], dict[str, _V]]:
    """Values that the model reads and those that policies do.

    Without policies, what nobody knows is the model's to refuse.

    Raises:
        DataError: Neither knows one of them.
    """
    for name in given:
        if fields and name not in features and name not in fields:
            hint = did_you_mean(name, sorted(features | fields))
            raise DataError(f"'{name}' is neither a feature of the model nor a field that a policy reads{hint}")
    own = {name: value for name, value in given.items() if name in features or name not in fields}
    return own, {name: value for name, value in given.items() if name in fields}
