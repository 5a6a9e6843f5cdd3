"""How an experiment is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AnalysisSettings", "Looks"]

Looks = Literal["fixed", "sequential"]


class AnalysisSettings(BaseModel):
    """What an analysis may choose; the defaults are what we would ship."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    looks: Looks = "sequential"
    """``sequential``: valid however often one looks. ``fixed``: narrower, valid for one look, at the planned end."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance of any false discovery among the metrics that decide."""
    cuped: bool = True
    """Take out what users did before."""
    expected_effect: float = Field(default=0.05, gt=0)
    """Relative effects of about this size are looked for; sequential intervals are narrowest for them."""
    srm_alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """A sample-ratio mismatch with a smaller p-value makes the experiment not to be trusted."""
    max_crossed: float = Field(default=0.01, ge=0, le=1)
    """So does a larger share of users who were seen in two variants."""
    max_segment_values: int = Field(default=20, ge=1)
    """Of a segment column, those with the most users."""
