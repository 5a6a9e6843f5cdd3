"""From the event log into the feature store: at once, and after a failure as soon as the store answers again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence

import numpy as np
import structlog

from infnet.errors import InfnetError, StoreError
from infnet.serving.ads.billing import Billing
from infnet.serving.event_log import EventLog
from infnet.serving.events import Event
from infnet.serving.feature_store.base import FeatureStore, HistoryEvent
from infnet.serving.live import LiveModel, ModelHolder
from infnet.serving.log_reader import read_own_events
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.segments import Position

__all__ = ["StoreFeeder", "history_events"]

_log = structlog.get_logger(__name__)
_EVERY_S = 0.5
_AT_A_TIME = 5_000


class StoreFeeder:
    """Keeps histories up to the log.

    The store remembers how far into this writer's log it has come. When it fails, events wait in the log; when the
    process dies, the next one goes on from there; when the store has lost everything, it is filled again. An event that
    comes twice is one, so nothing is lost and nothing doubled.

    Args:
        log: Whose events are put into the store.
        store: Of the histories.
        holder: Of the live model, which says what the behaviours are.
        metrics: Says while the store is behind.
        fill: Fills a store that knows nothing.
        billing: Charges what events say was seen.
    """

    def __init__(
        self,
        log: EventLog,
        store: FeatureStore,
        holder: ModelHolder,
        metrics: ServiceMetrics,
        fill: Callable[[], None],
        billing: Billing,
    ) -> None:
        self._log, self._store, self._holder, self._metrics, self._fill = log, store, holder, metrics, fill
        self._billing = billing
        self._mark = f"applied/{log.writer}"
        self._is_behind = True
        self._fed: Position = {}
        """How far into the log the store has come; what is in the log beyond is about to be fed."""
        self._marked: Position | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-feeder", daemon=True)

    @property
    def is_behind(self) -> bool:
        """Whether events wait in the log for the store."""
        return self._is_behind

    def start(self) -> None:
        """Catch up, unless the store fails, and go on doing so."""
        self._round()
        self._thread.start()

    def close(self) -> None:
        """Note how far the store has come, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._round()

    def feed(self, events: Sequence[Event], live: LiveModel) -> None:
        """Put events that are in the log into histories; if the store fails, later."""
        with self._lock:
            if self._is_behind:
                return
            position = self._log.position()
            try:
                self._append(history_events(events, live))
                self._billing.apply(events)
                self._fed = position
            except StoreError as error:
                self._fall_behind(error)

    def postpone(self, error: StoreError) -> None:
        """Leave events that are in the log to the next round, as the store could not say what they are."""
        with self._lock:
            self._fall_behind(error)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._round()

    def _round(self) -> None:
        try:
            with self._lock:
                self._catch_up() if self._is_behind else self._note()
        except StoreError as error:
            self._fall_behind(error)
        except (InfnetError, OSError):
            _log.exception("store_feeder_failed")
        self._metrics.store_behind.set(self._is_behind)

    def _fall_behind(self, error: StoreError) -> None:
        if not self._is_behind:
            _log.warning("feature_store_behind", reason=str(error))
        self._is_behind = True

    def _catch_up(self) -> None:
        """Append everything since the mark; whoever feeds meanwhile waits."""
        told = self._store.marked(self._mark)
        if told is None:
            self._fill()
        position: Position = {} if told is None else json.loads(told)
        events, position = read_own_events(self._log.directory, self._log.writer, position)
        found = history_events(events, self._holder.live)
        self._append(found if told is not None else unheard(found, self._holder.live))
        self._billing.apply(self._billing.with_others(self._billing.with_own(events)))
        self._fed = position
        if not self._save(position, anew=told is None):
            return  # It has forgotten meanwhile: once more, from the beginning.
        if events:
            _log.info("feature_store_caught_up", events=len(events))
        self._is_behind = False

    def _note(self) -> None:
        """Remember how far the store has come, and see whether it has forgotten."""
        if self._fed != self._marked:
            is_there = self._save(self._fed, anew=False)
        else:
            is_there = self._store.marked(self._mark) is not None
        if not is_there:
            _log.warning("feature_store_lost")
            self._is_behind = True
            self._catch_up()

    def _save(self, position: Position, *, anew: bool) -> bool:
        """Mark a position; False if the store has no mark, and may not get one for want of what led to it."""
        is_marked = self._store.mark(self._mark, json.dumps(position), anew=anew)
        if is_marked:
            self._marked = dict(position)
        return is_marked

    def _append(self, events: Sequence[HistoryEvent]) -> None:
        for start in range(0, len(events), _AT_A_TIME):
            self._store.append(events[start : start + _AT_A_TIME])


def unheard(events: Sequence[HistoryEvent], live: LiveModel) -> list[HistoryEvent]:
    """Those that are not in the histories of the model's bundle, which has learnt of some from the log."""
    bundle = live.ranker.bundle
    places = {behaviour.name: place for place, behaviour in enumerate(bundle.layout.behaviours)}
    users = bundle.users.find([event.user for event in events])
    items = bundle.items.find([event.item for event in events])
    kept = []
    for event, user, item in zip(events, users.tolist(), items.tolist(), strict=True):
        place = places.get(event.behaviour)
        if place is not None and user and item:
            history = bundle.histories[place]
            start, end = history.starts[user : user + 2]
            same = start + np.flatnonzero(history.times[start:end] == event.time_ms)
            if (history.items[same] == item).any():
                continue
        kept.append(event)
    return kept


def history_events(events: Sequence[Event], live: LiveModel) -> list[HistoryEvent]:
    """What events add to their users' histories."""
    found = []
    for event in events:
        if event.user_id is None or not event.value > 0:
            continue
        # The same event always gets the same place among those of one time.
        order = int.from_bytes(hashlib.blake2b(event.event_id.encode(), digest_size=8).digest()) >> 1
        for behaviour in live.behaviours_of.get(event.type, ()):
            found.append(HistoryEvent(event.user_id, behaviour, event.item_id, event.time_ms, order))
    return found
