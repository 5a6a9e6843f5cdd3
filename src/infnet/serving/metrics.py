"""What the service counts and times, for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

from infnet.serving.live import LiveModel

__all__ = ["CONTENT_TYPE_LATEST", "ServiceMetrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_PACES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_Mode: TypeAlias = Literal["livemostrecent", "livesum", "livemax"]
_PROBABILITIES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class ServiceMetrics:
    """All of them; every worker process of a service adds to the same where PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"infnet_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"infnet_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: _Mode = "livemostrecent") -> Gauge:
            return Gauge(f"infnet_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        self.requests = counter("requests", "Requests answered.", "endpoint", "code")
        self.request_seconds = histogram("request_seconds", "First byte in to answer out.", _SECONDS, "endpoint")
        self.stage_seconds = histogram("stage_seconds", "Of ranking requests, by stage.", _SECONDS, "stage")
        self.degraded = counter("degraded", "Answers from which something was left out.", "step")
        self.candidates = histogram("candidates", "Of a request.", _COUNTS)
        self.batch_requests = histogram("batch_requests", "Requests computed together.", _BATCHES)
        self.queued = gauge("queued_requests", "Waiting for a worker.", mode="livesum")
        self.unknown = counter("unknown", "Users and items that the model does not know.", "side")
        self.history_events = histogram("history_events", "Past events read for a request.", _COUNTS, "behaviour")
        self.scores = histogram("predicted", "Prediction for the first item of an answer.", _PROBABILITIES, "task")
        self.expected = counter("expected", "Sum of predictions over impressions.", "task", "segment")
        self.observed = counter("observed", "Sum of labels that events told of these impressions.", "task", "segment")
        self.events = counter("events", "Events received.", "type", "fate")
        self.ad_impressions = counter("ad_impressions_sold", "Impressions of ads that were charged.")
        self.ad_revenue = counter("ad_revenue", "What was charged for them, in the policy's currency.")
        self.ads_refused = counter("ads_refused", "Ads among the candidates that were not shown.", "reason")
        self.ad_pace = histogram("ad_pace", "Of the campaigns whose ads got positions.", _PACES)
        self.store_behind = gauge("feature_store_behind", "1 while events wait to enter it.", mode="livemax")
        self.log_failures = counter("event_log_failures", "Writes that the event log did not take.")
        self.swaps = counter("model_swaps", "Models published, by whether they were taken.", "result")
        self.policy_changes = counter("policy_changes", "Changed policy files, by whether they were taken.", "result")
        self.model = gauge("model_info", "1 for the version that is served.", "version", "model")
        self.model_loaded = gauge("model_loaded_timestamp_seconds", "When the served version was loaded.")
        self.trained_to = gauge("model_trained_to_timestamp_seconds", "Newest row that the model learned from.")
        self._shown: tuple[str, str] | None = None

    def serving(self, model: LiveModel) -> None:
        """Say which model is live."""
        manifest = model.ranker.bundle.manifest
        if self._shown is not None and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            self.model.remove(*self._shown)
        elif self._shown is not None:
            self.model.labels(*self._shown).set(0)
        self._shown = (model.version, manifest.model)
        self.model.labels(*self._shown).set(1)
        self.model_loaded.set(model.loaded_ms / 1000)
        self.trained_to.set(manifest.trained_to_ms / 1000)

    def stages(self, seconds: Mapping[str, float]) -> None:
        """Time the stages of a ranking request."""
        for stage, value in seconds.items():
            self.stage_seconds.labels(stage).observe(value)

    def answered(self, endpoint: str, code: int, arrived: float) -> None:
        """Count an answer.

        Args:
            endpoint: Its route.
            code: HTTP status.
            arrived: When the request did, by ``time.perf_counter``.
        """
        self.requests.labels(endpoint, str(code)).inc()
        self.request_seconds.labels(endpoint).observe(time.perf_counter() - arrived)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
