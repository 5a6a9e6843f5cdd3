"""How a simulation is run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SimulationSettings"]


class SimulationSettings(BaseModel):
    """What does not depend on the world or the service. The same settings bring the same visits and candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_users: int | None = Field(default=None, ge=1)
    """The first so many of the world's users take part; all by default."""
    num_days: int = Field(default=14, ge=1, le=3650)
    """After the last day of the world's log."""
    num_candidates: int = Field(default=100, ge=1, le=10_000)
    """Of a request, drawn as the policy that made the log draws what it shows, less what the user saw that day."""
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=16, ge=1, le=1000)
    """Requests that travel together."""
    connections: int = Field(default=2, ge=1, le=64)
    """Of the client, at once."""
    num_timed: int = Field(default=10, ge=0)
    """Requests of each hour that travel alone, while nothing else does: what latencies are measured by."""
