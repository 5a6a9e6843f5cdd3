"""The ranking service without its transport: requests in, orders out, within their deadlines."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from infnet.errors import DataError, InfnetError, StoreError
from infnet.serving.ads.billing import Billing
from infnet.serving.ads.desk import AdDesk
from infnet.serving.arms import Arms
from infnet.serving.budget import Costs
from infnet.serving.clock import Clock
from infnet.serving.decision import Decision, decide
from infnet.serving.event_log import EventLog
from infnet.serving.events import Served
from infnet.serving.exposure import ExposureMemory
from infnet.serving.features import FeatureService, Wanted
from infnet.serving.live import LiveModel
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.replies import ads_left_out, finished, items_of, sales_of, served, served_unranked
from infnet.serving.ticket import Prepared, Ticket, asks_items, by_prior, prepare, seen_since, told_apart
from infnet.serving.wire import ItemReply, RankBody, RankReply

__all__ = ["RankingService"]

_log = structlog.get_logger(__name__)
_USED = 0.9
"""Share of a request's time that is planned with; the rest is for the answer's way back."""


class RankingService:
    """Answers ranking requests with live models and policies; safe to use from several threads.

    What cannot be had in time is left out (:data:`infnet.serving.budget.DEGRADATIONS`), and the answer says so.

    Args:
        arms: Who is answered with which model and policy.
        features: Of users and items.
        log: Takes every request, and of those that the model answered the features it did so with; None logs nothing.
        memory: Told of every request, for the events that follow.
        metrics: Told of everything.
        desk: Knows how campaigns stand.
        billing: Told of every sale.
        by: Task whose prediction is the score where there is no policy; the model's first if None.
        deadline_s: Of requests that ask for no shorter one.
        max_candidates: Of one request.
        clock: Says when a request was made; the machine's by default.

    Raises:
        SpecError: ``by`` is no task of a model.
    """

    def __init__(
        self,
        arms: Arms,
        features: FeatureService,
        log: EventLog | None,
        memory: ExposureMemory,
        metrics: ServiceMetrics,
        desk: AdDesk,
        billing: Billing,
        *,
        by: str | None = None,
        deadline_s: float = 0.1,
        max_candidates: int = 10_000,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self.arms, self.features, self.log = arms, features, log
        self.memory, self.metrics, self.costs = memory, metrics, Costs()
        self.desk, self.billing = desk, billing
        self._by, self._deadline_s, self._max_candidates = by, deadline_s, max_candidates
        if by is not None:
            for holder in arms.holders:
                holder.live.check_task(by)

    def admit(self, body: RankBody, arrived: float) -> Ticket:
        """A ticket for a request.

        Raises:
            DataError: It has too many candidates, its columns do not fit each other, or it brings a time where the
                service has a clock of its own.
            SpecError: It asks for an unknown task.
        """
        items, values = body.columns()
        if len(items) > self._max_candidates:
            raise DataError(f"the request has {len(items)} candidates, wanted at most {self._max_candidates}")
        user, time_ms = str(body.user_id), self._clock.of_request(body.time_ms)
        assigned = self.arms.of(user, time_ms)
        model = assigned.arm.holder.live
        if body.by is not None:
            model.check_task(body.by)
        encoder, arms = model.ranker.encoder, self.arms
        values, fields = told_apart(values, encoder.candidate_names, arms.item_fields)
        context, request_fields = told_apart(body.context, encoder.context_names, arms.request_fields)
        budget = self._deadline_s if body.deadline_ms is None else min(self._deadline_s, body.deadline_ms / 1000)
        return Ticket(
            body=body,
            request_id=body.request_id or uuid.uuid4().hex,
            user=user,
            assigned=assigned,
            items=items,
            values=values,
            context=context,
            fields=fields,
            request_fields=request_fields,
            arrived=arrived,
            deadline=arrived + _USED * budget,
            time_ms=time_ms,
        )

    def answer(self, tickets: Sequence[Ticket]) -> list[RankReply | InfnetError]:
        """Answers to requests that are computed together, or why there is none; in their order."""
        groups: dict[int, list[int]] = {}
        for index, ticket in enumerate(tickets):
            groups.setdefault(id(ticket.assigned.arm.holder), []).append(index)
        found: dict[int, RankReply | InfnetError] = {}
        for places in groups.values():
            alike = [tickets[i] for i in places]
            found |= zip(places, self._answer(alike[0].assigned.arm.holder.live, alike), strict=True)
        return [found[index] for index in range(len(tickets))]

    def _answer(self, model: LiveModel, tickets: Sequence[Ticket]) -> list[RankReply | InfnetError]:
        """The same of requests that one model answers."""
        started = time.perf_counter()
        for ticket in tickets:
            ticket.seconds["queue"] = started - ticket.arrived
        plans = [self.costs.plan(ticket.deadline - started, len(ticket.items)) for ticket in tickets]
        for plan, ticket in zip(plans, tickets, strict=True):
            if ticket.items:
                self.costs.left_out(plan)
        asks = [plan.asks_store for plan in plans]
        answers = {
            may_ask: iter(
                self.features.fetch(
                    model,
                    [
                        Wanted(t.request_id, t.user, t.items if asks_items(model, t) else (), t.time_ms, seen_since(t))
                        for t, asked in zip(tickets, asks, strict=True)
                        if asked is may_ask
                    ],
                    may_ask=may_ask,
                )
            )
            for may_ask in {*asks}
        }
        known = [next(answers[asked]) for asked in asks]
        fetched = time.perf_counter()
        if any(asks):
            self.costs.fetched(fetched - started)

        found: dict[int, RankReply | InfnetError] = {}
        prepared: dict[int, Prepared] = {}
        for index, ticket in enumerate(tickets):
            ticket.seconds["features"] = fetched - started
            again = self.costs.plan(ticket.deadline - fetched, len(ticket.items))
            num = min(plans[index].num_candidates, again.num_candidates)
            try:
                if num or not ticket.items:
                    prepared[index] = prepare(model, ticket, known[index], num)
                else:
                    found[index] = reply = self.popular(ticket)
                    if ticket.offer(reply):  # else whoever gave it up has logged it
                        self.log_unranked(ticket)
            except InfnetError as error:
                found[index] = error
        encoded = time.perf_counter()
        scores = model.ranker.score_encoded([each.encoded for each in prepared.values()]) if prepared else []
        scored = time.perf_counter()
        for (index, each), predictions in zip(prepared.items(), scores, strict=True):
            each.ticket.seconds |= {"encode": encoded - fetched, "model": scored - encoded}
            try:
                found[index] = self._reply(model, each, predictions)
            except InfnetError as error:
                found[index] = error
        if prepared:
            self.costs.scored(scored - fetched, sum(len(each.places) for each in prepared.values()))
        self.costs.served((time.perf_counter() - started) / len(tickets))
        self.metrics.batch_requests.observe(len(tickets))
        return [found[index] for index in range(len(tickets))]

    def popular(self, ticket: Ticket) -> RankReply:
        """The answer that needs neither features nor model: candidates by their prior score."""
        model = ticket.assigned.arm.holder.live
        order, prior = by_prior(model, ticket)
        order = order[[not self._may_be_ad(ticket, place) for place in order.tolist()]]
        items = [ItemReply(ticket.items[i], float(prior[i]), {}) for i in order[: ticket.body.limit]]
        self.memory.asked(ticket.request_id, ticket.user)
        return finished(model, ticket, items, {"popularity_order"})

    def _may_be_ad(self, ticket: Ticket, place: int) -> bool:
        """Whether a candidate is known to be an ad, by the request or by what the store said of it lately."""
        policy = ticket.assigned.arm.policy
        if policy is None or policy.live.ads is None:
            return False
        name = policy.live.ads.spec.field
        told = ticket.fields[name][place] if name in ticket.fields else None
        return bool(self.features.last_known(ticket.items[place], name) if told is None else told)

    def log_unranked(self, ticket: Ticket) -> None:
        """Log that a request was answered, though not by the model: it counts in an experiment like any other."""
        self._append(served_unranked(ticket))

    def _reply(self, model: LiveModel, prepared: Prepared, predictions: NDArray[np.float64]) -> RankReply:
        ticket, tasks, started = prepared.ticket, model.ranker.tasks, time.perf_counter()
        by = ticket.body.by
        if by is not None:
            model.check_task(by)  # once more: the model may be another one than when it was admitted
        elif prepared.policy is None and self._by in tasks:
            by = self._by
        decision = decide(
            prepared,
            predictions,
            tasks,
            by,
            vectors=lambda: model.item_vectors(prepared.encoded.items),
            may_rerank=lambda: self.costs.may_rerank(ticket.deadline - time.perf_counter()),
            desk=self.desk,
        )
        if decision.page is not None:
            ticket.seconds["rerank"] = time.perf_counter() - started
            self.costs.reranked(ticket.seconds["rerank"])
        chosen = predictions[decision.order]
        items = items_of(prepared, decision, tasks, chosen)
        # From here on this is the answer, even if the log takes so long that the time is over before.
        told = (ticket.degraded, decision.policy_version, ads_left_out(prepared, decision))
        if ticket.offer(finished(model, ticket, items, *told)):
            delivered, sales = [item.item_id for item in items], sales_of(prepared, decision)
            log = served(model, prepared, decision, items)
            self.memory.served(ticket.request_id, ticket.user, delivered, chosen, model.spec.tasks, sales, log.segment)
            self.billing.sold(ticket.request_id, sales)
            self._append(log)
            self._observe(model, prepared, decision, chosen)
        ticket.seconds["reply"] = time.perf_counter() - started
        return finished(model, ticket, items, *told)

    def _append(self, served: Served) -> None:
        if self.log is None:
            return
        try:
            self.log.append_served(served)
        except StoreError as error:
            self.metrics.log_failures.inc()
            _log.error("served_request_not_logged", request_id=served.request_id, reason=str(error))

    def _observe(
        self, model: LiveModel, prepared: Prepared, decision: Decision, predictions: NDArray[np.float64]
    ) -> None:
        metrics, bundle = self.metrics, model.ranker.bundle
        if decision.offer is not None:
            decision.offer.count(metrics)
        metrics.candidates.observe(len(prepared.ticket.items))
        if not bundle.users.find([prepared.ticket.user])[0]:
            metrics.unknown.labels("user").inc()
        unknown = len(prepared.places) - int(np.count_nonzero(prepared.encoded.items))
        if unknown:
            metrics.unknown.labels("item").inc(unknown)
        for behaviour, history in zip(bundle.layout.behaviours, prepared.encoded.histories, strict=True):
            metrics.history_events.labels(behaviour.name).observe(len(history))
        for task, column in zip(model.ranker.tasks, predictions.T, strict=True):
            if len(column):
                metrics.scores.labels(task).observe(float(column[0]))
