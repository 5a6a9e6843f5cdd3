"""How a service is set up."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infnet.export.bundle import BackendName

__all__ = ["ServeSettings"]


class ServeSettings(BaseModel):
    """Everything that ``infnet serve`` can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Path
    """A bundle, or a directory of versions that is watched."""
    state: Path
    """Directory for the embedded feature store."""
    events: Path
    """Directory of the event log."""
    store: str | None = None
    """URL of a Redis; the embedded store if None."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    """Processes; more than one need Redis."""
    threads: int = Field(default=2, ge=1, le=64)
    """Of a process, that answer requests."""
    backend: BackendName | None = None
    """The bundle's default if None."""
    by: str | None = None
    """Task whose prediction is the score where there is no policy; the model's first if None."""
    policy: Path | None = None
    """File of the ranking policy; read again when it changes."""
    experiments: Path | None = None
    """File of the experiments."""
    deadline_ms: float = Field(default=100.0, ge=1, le=10_000)
    """From a request's first byte to its answer."""
    store_timeout_ms: float = Field(default=30.0, ge=1, le=10_000)
    """After which Redis counts as failed."""
    queue: int = Field(default=256, ge=1)
    """Requests that may wait; what comes beyond is told to come back (503)."""
    batch: int = Field(default=32, ge=1, le=256)
    """Small requests that are computed together, at most, if so many wait."""
    batch_wait_ms: float = Field(default=0.0, ge=0, le=100)
    """How long a small request waits for others to be computed with."""
    max_candidates: int = Field(default=10_000, ge=1)
    """Of one request."""
    max_body_mb: float = Field(default=8.0, gt=0)
    """Of one body."""
    ttl_days: float = Field(default=90.0, gt=0)
    """After which a user whom nothing is heard of is forgotten by the store."""
    fsync: Literal["always", "interval", "never"] = "interval"
    """When events reach the disk rather than the system's cache; see :class:`infnet.serving.event_log.EventLog`."""
    replays: bool = False
    """Whether requests and events say themselves when they were; see :class:`infnet.serving.clock.Clock`."""
    loads: bool = True
    """Whether a store that has not seen this dataset is filled from the bundle's histories."""
    tracing: bool = False
    """Send OpenTelemetry spans to where OTEL_EXPORTER_OTLP_ENDPOINT says."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
