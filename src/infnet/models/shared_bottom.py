"""Shared-Bottom: one network for all tasks up to a tower each.

R. Caruana, "Multitask Learning", Machine Learning 28 (1997); over the same tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from infnet.data.layout import Layout
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.layers.mlp import HiddenLayers
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["SharedBottom", "SharedBottomConfig"]


class SharedBottomConfig(ModelConfig):
    """Settings of Shared-Bottom."""

    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers that all tasks share."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("shared_bottom")
class SharedBottom(RankingModel):
    """All field tokens and one mean-pooled token per behaviour, through shared layers, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = SharedBottomConfig
    config: SharedBottomConfig

    def __init__(self, layout: Layout, config: SharedBottomConfig) -> None:
        super().__init__(layout, config)
        pooled_width = self.inputs.num_behaviours * config.width
        self.first = InputLinear(self.inputs, config.hidden[0], request_width=pooled_width)
        self.rest = HiddenLayers(config.hidden, config.dropout)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        pooled = None if tokens.events is None else tokens.events.means().flatten(1)
        shared = self.rest(self.first(tokens, pooled))
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))
