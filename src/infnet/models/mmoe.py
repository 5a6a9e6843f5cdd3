"""MMoE: experts that all tasks share, weighted for each task by a gate of its own.

J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018; over
the same tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from infnet.data.layout import Layout
from infnet.layers.experts import Experts
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["MMoE", "MMoEConfig"]


class MMoEConfig(ModelConfig):
    """Settings of MMoE."""

    num_experts: int = Field(default=4, ge=1)
    """Experts that all tasks share."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers of each expert."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("mmoe")
class MMoE(RankingModel):
    """All field tokens and one mean-pooled token per behaviour, through gated experts, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = MMoEConfig
    config: MMoEConfig

    def __init__(self, layout: Layout, config: MMoEConfig) -> None:
        super().__init__(layout, config)
        pooled_width = self.inputs.num_behaviours * config.width
        num_gates = self.num_gates(layout)
        self.first = InputLinear(self.inputs, config.num_experts * config.hidden[0], request_width=pooled_width)
        self.experts = Experts(config.num_experts, config.hidden, config.dropout)
        self.gates = InputLinear(self.inputs, num_gates * config.num_experts, request_width=pooled_width)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    @classmethod
    def num_gates(cls, layout: Layout) -> int:
        """One per task."""
        return len(layout.tasks)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        pooled = None if tokens.events is None else tokens.events.means().flatten(1)
        experts = self.experts(self.first(tokens, pooled))  # (R, N, E, hidden[-1])
        gates = self.gates(tokens, pooled).unflatten(-1, (-1, self.config.num_experts)).softmax(dim=-1)
        logits: Tensor = self.heads((gates @ experts).expand(-1, -1, len(self.layout.tasks), -1))
        return logits
