"""The ranking service without its transport: requests in, orders out, within their deadlines."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence, Set

import numpy as np
import structlog
from numpy.typing import NDArray

from infnet.errors import DataError, InfnetError, StoreError
from infnet.serving.arms import Arms
from infnet.serving.budget import DEGRADATIONS, Costs, Degradation
from infnet.serving.clock import Clock
from infnet.serving.decision import Decision, decide
from infnet.serving.event_log import EventLog
from infnet.serving.events import Served
from infnet.serving.exposure import ExposureMemory
from infnet.serving.features import FeatureService
from infnet.serving.live import LiveModel
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.ticket import Prepared, Ticket, asks_items, by_prior, prepare, told_apart
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
        *,
        by: str | None = None,
        deadline_s: float = 0.1,
        max_candidates: int = 10_000,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self.arms, self.features, self.log = arms, features, log
        self.memory, self.metrics, self.costs = memory, metrics, Costs()
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
                        (t.request_id, t.user, t.items if asks_items(model, t) else (), t.time_ms)
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
        items = [ItemReply(ticket.items[i], float(prior[i]), {}) for i in order[: ticket.body.limit]]
        self.memory.asked(ticket.request_id, ticket.user)
        return self._finished(model, ticket, items, {"popularity_order"})

    def log_unranked(self, ticket: Ticket) -> None:
        """Log that a request was answered, though not by the model: it counts in an experiment like any other."""
        served = Served(
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
        self._append(served)

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
        )
        if decision.page is not None:
            ticket.seconds["rerank"] = time.perf_counter() - started
            self.costs.reranked(ticket.seconds["rerank"])
        order = decision.order
        places, chosen = prepared.places[order], predictions[order]
        parts: list[dict[str, float]] = [{}] * len(order)
        notes: list[list[str]] = [[]] * len(order)
        if ticket.body.explain:
            parts, notes = decision.explained(), decision.notes()
        items = [
            ItemReply(ticket.items[place], score, dict(zip(tasks, row, strict=True)), part, note)
            for place, score, row, part, note in zip(
                places.tolist(), decision.scores[order].tolist(), chosen.tolist(), parts, notes, strict=True
            )
        ]
        # From here on this is the answer, even if the log takes so long that the time is over before.
        version = decision.policy_version
        if ticket.offer(self._finished(model, ticket, items, ticket.degraded, version)):
            delivered = [item.item_id for item in items]
            self.memory.served(ticket.request_id, ticket.user, delivered, chosen, model.spec.tasks)
            self._write(model, prepared, decision, items)
            self._observe(model, prepared, chosen)
        ticket.seconds["reply"] = time.perf_counter() - started
        return self._finished(model, ticket, items, ticket.degraded, version)

    def _finished(
        self,
        model: LiveModel,
        ticket: Ticket,
        items: list[ItemReply],
        left_out: Set[Degradation],
        policy_version: str = "",
    ) -> RankReply:
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
        )

    def _write(self, model: LiveModel, prepared: Prepared, decision: Decision, items: Sequence[ItemReply]) -> None:
        """Log once what was read and answered, so that training reads it later and nothing else."""
        ticket, user, order = prepared.ticket, prepared.known.user, decision.order.tolist()
        served = Served(
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
        )
        self._append(served)

    def _append(self, served: Served) -> None:
        if self.log is None:
            return
        try:
            self.log.append_served(served)
        except StoreError as error:
            self.metrics.log_failures.inc()
            _log.error("served_request_not_logged", request_id=served.request_id, reason=str(error))

    def _observe(self, model: LiveModel, prepared: Prepared, predictions: NDArray[np.float64]) -> None:
        metrics, bundle = self.metrics, model.ranker.bundle
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


def _ms_since(arrived: float) -> float:
    return round(1000 * (time.perf_counter() - arrived), 3)
