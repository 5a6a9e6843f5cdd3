"""Events from clients: checked, written to the log, then told to the feature store."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence, Set

import msgspec

from infnet.errors import DataError, StoreError, did_you_mean
from infnet.serving.ads.billing import Billing
from infnet.serving.clock import Clock
from infnet.serving.event_log import EventLog
from infnet.serving.events import Event
from infnet.serving.exposure import ExposureMemory
from infnet.serving.feature_store.base import FeatureStore
from infnet.serving.features import Recent
from infnet.serving.live import LiveModel, ModelHolder
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.store_feeder import StoreFeeder
from infnet.serving.wire import JSON, EventBody, EventsReply, Rejection, decode

__all__ = ["EventIngest"]

_AHEAD_MS = 5 * 60_000
"""How far a client's clock may be ahead."""
_REMEMBERED = 500_000


class EventIngest:
    """Takes events: what it has accepted is in the log before it answers, and in the histories unless the store fails.

    Fates: malformed ones (no such document, unknown type, value that is no number, time ahead of the clock) are set
    aside with the reason; duplicates (an event id taken lately) are counted and left out; late and out-of-order ones
    are taken as they come, and the label join decides about them by their time.

    Args:
        log: Takes events; its latest ones are known as duplicates at once.
        store: Asked whose request an event belongs to, if the event does not say and this process did not serve it.
        feeder: Brings events into the store.
        holder: Of the live model, whose tasks and behaviours say which types there are.
        memory: Of what was served.
        metrics: Counts fates.
        billing: Knows which impressions are of ads.
        clock: Says when an event was that does not say so; the machine's by default.
        counted: Types of events that are taken besides those that the model knows, for experiments to count.
    """

    def __init__(
        self,
        log: EventLog,
        store: FeatureStore,
        feeder: StoreFeeder,
        holder: ModelHolder,
        memory: ExposureMemory,
        metrics: ServiceMetrics,
        billing: Billing,
        clock: Clock | None = None,
        counted: Set[str] = frozenset(),
    ) -> None:
        self._clock, self._counted = clock or Clock(), counted
        self._log, self._store, self._feeder = log, store, feeder
        self._holder, self._memory, self._metrics = holder, memory, metrics
        self._billing = billing
        self._taken: Recent[str, None] = Recent(_REMEMBERED)
        self._lock = threading.Lock()
        for event_id in log.recent_event_ids(_REMEMBERED):
            self._taken.put(event_id, None)
        served = log.recent_served(memory.limit)
        memory.recall(served, holder.live.spec.tasks)
        billing.recall(served, self._clock.now_ms())

    def set_aside(self, raw: bytes, reason: str) -> None:
        """Keep something that is no event."""
        self._metrics.events.labels("", "rejected").inc()
        self._log.reject(raw, reason)

    def take(self, raw: Sequence[bytes]) -> EventsReply:
        """Take events, each the JSON of an :class:`EventBody`.

        Raises:
            StoreError: The log does not take them; none of them is taken.
        """
        live = self._holder.live
        events: list[Event] = []
        rejected: list[Rejection] = []
        for index, each in enumerate(raw):
            try:
                events.append(self._checked(decode(each, EventBody, JSON), live))
            except DataError as error:
                rejected.append(Rejection(index, str(error)))
        events = self._with_users(events)
        events, failure = self._with_sales(events)
        with self._lock:
            fresh = self._unseen(events)
            for rejection in rejected:
                self._log.reject(raw[rejection.index], rejection.reason)
            if fresh:
                try:
                    self._log.append_events(fresh)
                except StoreError:
                    self._metrics.log_failures.inc()
                    raise
                for event in fresh:
                    self._taken.put(event.event_id, None)
                self._feeder.feed(fresh, live) if failure is None else self._feeder.postpone(failure)
        for event in fresh:
            self._memory.happened(event)
            self._metrics.events.labels(event.type, "accepted").inc()
        if rejected:
            self._metrics.events.labels("", "rejected").inc(len(rejected))
        if len(fresh) < len(events):
            self._metrics.events.labels("", "duplicate").inc(len(events) - len(fresh))
        return EventsReply(len(fresh), len(events) - len(fresh), rejected)

    def _unseen(self, events: Sequence[Event]) -> list[Event]:
        first = {event.event_id: event for event in reversed(events)}
        return [e for e in events if first[e.event_id] is e and e.event_id not in self._taken]

    def _with_sales(self, events: Sequence[Event]) -> tuple[list[Event], StoreError | None]:
        """With what ads were sold for, and why that of some is not known yet."""
        own = self._billing.with_own(events)
        try:
            return self._billing.with_others(own), None
        except StoreError as error:
            return own, error

    def _with_users(self, events: Sequence[Event]) -> list[Event]:
        """With the users of their requests, as far as these are known."""
        users = {event.request_id: self._memory.user_of(event.request_id) for event in events if event.user_id is None}
        strangers = [request_id for request_id, user in users.items() if user is None]
        if strangers:
            # Without the store, the label join finds them in the log; their histories go without these events.
            with contextlib.suppress(StoreError):
                users |= zip(strangers, self._store.users_of(strangers), strict=True)
        return [
            event if event.user_id is not None else msgspec.structs.replace(event, user_id=users[event.request_id])
            for event in events
        ]

    def _checked(self, body: EventBody, live: LiveModel) -> Event:
        if body.type not in live.event_types and body.type not in self._counted:
            known = live.event_types | self._counted
            raise DataError(f"no event is of type '{body.type}'{did_you_mean(body.type, known)}")
        now, value = self._clock.told(body.time_ms), float(body.value)
        if not math.isfinite(value):
            raise DataError(f"value is {body.value}, wanted a number")
        if body.time_ms is not None and body.time_ms > now + _AHEAD_MS:
            ahead = (body.time_ms - now) // 1000
            raise DataError(f"time_ms is {body.time_ms}, {ahead} s ahead of the clock; send ms since 1970")
        item, at = str(body.item_id), [] if body.time_ms is None else [str(body.time_ms)]
        return Event(
            event_id=body.event_id or "/".join(map(_escaped, (body.request_id, item, body.type, *at))),
            request_id=body.request_id,
            item_id=item,
            type=body.type,
            time_ms=now if body.time_ms is None else body.time_ms,
            value=value,
            user_id=None if body.user_id is None else str(body.user_id),
            received_ms=now,
        )


def _escaped(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F")
