"""Everything a service is made of, put together from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from infnet.errors import DataError
from infnet.ranking.policy import Policy
from infnet.serving.ads.billing import Billing
from infnet.serving.ads.desk import AdDesk
from infnet.serving.arms import Arms
from infnet.serving.batcher import Batcher
from infnet.serving.clock import Clock
from infnet.serving.encoding import RankRequest
from infnet.serving.event_log import EventLog
from infnet.serving.exposure import ExposureMemory
from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import FeatureStore, history_bounds
from infnet.serving.feature_store.load import load_store
from infnet.serving.features import FeatureService
from infnet.serving.ingest import EventIngest
from infnet.serving.live import LiveModel, ModelHolder
from infnet.serving.metrics import ServiceMetrics
from infnet.serving.service import RankingService
from infnet.serving.settings import ServeSettings
from infnet.serving.store_feeder import StoreFeeder
from infnet.serving.ticket import Ticket
from infnet.serving.tracing import Tracer
from infnet.serving.wire import HealthReply, ModelReply, RankReply

__all__ = ["System", "fill_store", "open_feature_store"]

_log = structlog.get_logger(__name__)


class System:
    """A service without its transport.

    Attributes:
        service, batcher: Answer requests.
        ingest: Takes events.
        metrics: Counts.
    """

    def __init__(
        self, settings: ServeSettings, arms: Arms, store: FeatureStore, log: EventLog, clock: Clock | None = None
    ) -> None:
        self.settings, self.arms, self.store, self.log = settings, arms, store, log
        self.holder = holder = arms.default.holder
        self.metrics = ServiceMetrics()
        self.metrics.serving(holder.live)
        self.features = FeatureService(store)
        memory = ExposureMemory(self.metrics)
        self.desk = AdDesk(store.accounts, lambda: arms.ads, clock)
        self.billing = Billing(store, memory, self.metrics, lambda: bool(arms.ads))
        self.service = RankingService(
            arms,
            self.features,
            log,
            memory,
            self.metrics,
            self.desk,
            self.billing,
            by=settings.by,
            deadline_s=settings.deadline_ms / 1000,
            max_candidates=settings.max_candidates,
            clock=clock,
        )
        self.batcher = Batcher(
            self.service,
            workers=settings.threads,
            queue=settings.queue,
            most=settings.batch,
            wait_s=settings.batch_wait_ms / 1000,
        )
        self.feeder = StoreFeeder(log, store, holder, self.metrics, fill=self._fill, billing=self.billing)
        self.ingest = EventIngest(
            log, store, self.feeder, holder, memory, self.metrics, self.billing, clock, arms.counted
        )
        self._tracer = Tracer() if settings.tracing else None
        self._is_open = False

    @classmethod
    def open(cls, settings: ServeSettings) -> System:
        """Load models and policies, open the store and the log.

        Raises:
            ArtifactError: A model cannot be served.
            SpecError: A policy or the experiments cannot be used.
            StoreError: The embedded store or the log cannot be opened. A Redis that does not answer is no reason not to
                begin: requests are answered without it.
        """
        arms = Arms.open(settings)
        store = open_feature_store(settings, arms.default.holder.live)
        clock = Clock(replays=settings.replays)
        log = EventLog(settings.events, fsync=settings.fsync, clock=clock)
        return cls(settings, arms, store, log, clock)

    def start(self) -> None:
        """Begin to serve."""
        for holder in self.arms.holders:
            holder.on_swap = partial(self._swapped, holder)
        for policy in self.arms.policies:
            policy.on_change = self._policy_changed
        self.arms.watch()
        self.billing.start()
        self.feeder.start()
        self.desk.spending.start()
        self._is_open = True

    def close(self) -> None:
        """Answer what waits, write down what is known, let go of everything."""
        self._is_open = False
        self.batcher.close()
        self.arms.close()
        self.billing.close()
        self.desk.spending.close()
        self.feeder.close()
        self.log.close()
        self.store.close()
        if self._tracer is not None:
            self._tracer.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are welcome."""
        return self._is_open and self.batcher.is_alive

    def answered(self, ticket: Ticket, reply: RankReply) -> None:
        """Count an answer."""
        for step in reply.degraded:
            self.metrics.degraded.labels(step).inc()
        self.metrics.stages(dict(ticket.seconds))
        if reply.degraded:
            _log.debug("degraded", request_id=ticket.request_id, steps=reply.degraded)
        if self._tracer is not None:
            self._tracer.answered(ticket, reply)

    def exposition(self) -> bytes:
        """Metrics, as Prometheus reads them."""
        self.metrics.queued.set(self.batcher.num_waiting)
        return self.metrics.exposition()

    def model(self) -> ModelReply:
        """What is served."""
        live, policy = self.holder.live, self.arms.default.policy
        return ModelReply(
            version=live.version,
            model=live.ranker.bundle.manifest.model,
            tasks=list(live.ranker.tasks),
            event_types=sorted(live.event_types | self.arms.counted),
            loaded_ms=live.loaded_ms,
            refused=self.holder.refused,
            policy=None if policy is None else policy.live.version,
            policy_refused=any(each.refused is not None for each in self.arms.policies),
            experiments=list(self.arms.experiments),
        )

    def health(self) -> HealthReply:
        """How the parts are."""
        is_fed, is_logged = not self.feeder.is_behind, self.log.is_well
        is_well = self.features.is_available and is_fed and is_logged
        return HealthReply(
            status=("ok" if is_well else "degraded") if self.is_ready else "down",
            feature_store=("ok" if is_fed else "behind") if self.features.is_available else "failing",
            event_log="ok" if is_logged else "failing",
        )

    def put_user(self, key: str, features: Mapping[str, Any]) -> None:
        """Set a user's raw features.

        Raises:
            DataError: The model does not know one of them, or cannot read its value.
            StoreError: The store does not take them.
        """
        self.holder.live.ranker.encoder.describe(key, features, {})
        self.store.put_users({key: features})

    def put_item(self, key: str, features: Mapping[str, Any]) -> None:
        """Set an item's raw candidate features, and its fields that policies read.

        Raises:
            DataError: Neither the model nor a policy knows one of them, or the model cannot read its value.
            StoreError: The store does not take them.
        """
        live, fields = self.holder.live, self.arms.item_fields
        for name in features:
            if name not in live.dynamic_features and name not in fields:
                known = ", ".join((*live.dynamic_features, *sorted(fields))) or "none"
                raise DataError(f"'{name}' is no feature that is set per item while serving; these are: {known}")
        values = {name: [value] for name, value in features.items() if name in live.dynamic_features}
        live.ranker.encoder.encode(RankRequest("", [key], {}, values))
        self.store.put_items({key: features})

    def _swapped(self, holder: ModelHolder, model: LiveModel | None) -> None:
        self.metrics.swaps.labels("refused" if model is None else "taken").inc()
        if model is not None and holder is self.holder:
            self.metrics.serving(model)

    def _policy_changed(self, policy: Policy | None) -> None:
        self.metrics.policy_changes.labels("refused" if policy is None else "taken").inc()
        self.desk.spending.refresh()

    def _fill(self) -> None:
        if self.settings.loads:
            fill_store(self.store, self.holder.live)


def open_feature_store(settings: ServeSettings, live: LiveModel) -> FeatureStore:
    """The store that settings name.

    Raises:
        StoreError: It cannot be opened.
    """
    delays_s = {name: delay / 1000 for name, delay in live.delays_ms.items()}
    bounds = history_bounds(live.ranker.bundle.layout.behaviours, delays_s)
    ttl_s = 86_400 * settings.ttl_days
    if settings.store is None:
        return open_store(settings.state, bounds, ttl_s=ttl_s)
    return open_store(settings.store, bounds, ttl_s=ttl_s, timeout_s=settings.store_timeout_ms / 1000)


def fill_store(store: FeatureStore, live: LiveModel) -> int:
    """Load the bundle's histories into a store that has not seen them; how many events were loaded.

    Raises:
        StoreError: The store fails.
    """
    manifest = live.ranker.bundle.manifest
    mark = f"loaded/{manifest.name}"
    if store.marked(mark) is not None:
        return 0
    events = load_store(store, live.ranker.bundle)
    store.mark(mark, manifest.version)
    _log.info("feature_store_loaded", events=events)
    return events
