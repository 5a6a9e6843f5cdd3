"""PLE: shared experts and experts of each task's own, on one or several levels.

H. Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
Recommendations", RecSys 2020; over the same tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from infnet.data.layout import Layout
from infnet.layers.experts import ProgressiveExtraction
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["PLE", "PLEConfig"]


class PLEConfig(ModelConfig):
    """Settings of PLE."""

    num_levels: int = Field(default=1, ge=1)
    """Extraction networks on top of each other; one is the paper's CGC."""
    num_shared: int = Field(default=2, ge=1)
    """Shared experts of a level."""
    num_specific: int = Field(default=2, ge=0)
    """Experts of each task on a level; 0 leaves MMoE."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers of each expert."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("ple")
class PLE(RankingModel):
    """All field tokens and one mean-pooled token per behaviour, through levels of experts, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = PLEConfig
    config: PLEConfig

    def __init__(self, layout: Layout, config: PLEConfig) -> None:
        super().__init__(layout, config)
        pooled_width = self.inputs.num_behaviours * config.width
        self.extraction = ProgressiveExtraction(
            len(layout.tasks), config.num_levels, config.num_shared, config.num_specific, config.hidden, config.dropout
        )
        self.first = InputLinear(self.inputs, self.extraction.first_width, request_width=pooled_width)
        self.gates = InputLinear(self.inputs, self.extraction.num_logits, request_width=pooled_width)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        pooled = None if tokens.events is None else tokens.events.means().flatten(1)
        logits: Tensor = self.heads(self.extraction(self.first(tokens, pooled), self.gates(tokens, pooled)))
        return logits
