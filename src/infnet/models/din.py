"""DIN: each candidate looks for the past events that resemble it.

G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv 1706.06978. The paper has one
task and one history; here each behaviour has an activation unit of its own, and all tasks share the network up to a
tower each. PReLU stands in for Dice, whose batch statistics would let the rows of a batch change each other's scores;
the paper's L2 on the rows that a batch reads is the trainer's ``embedding_l2``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.layers.mlp import HiddenLayers
from infnet.layers.target_attention import TargetAttention
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["DIN", "DINConfig"]


class DINConfig(ModelConfig):
    """Settings of DIN."""

    attention_hidden: tuple[PositiveInt, ...] = Field(default=(36,), min_length=1)
    """Hidden layers of the activation unit."""
    attention_softmax: bool = False
    """Let the weights of a history's events sum to one; the paper does not."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers that all tasks share."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("din")
class DIN(RankingModel):
    """All field tokens and what the candidate read from each history, through shared layers, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = DINConfig
    config: DINConfig

    def __init__(self, layout: Layout, config: DINConfig) -> None:
        super().__init__(layout, config)
        self.attention = nn.ModuleList(
            TargetAttention(config.width, config.attention_hidden, config.attention_softmax) for _ in layout.behaviours
        )
        read_width = self.inputs.num_behaviours * config.width
        self.first = InputLinear(self.inputs, config.hidden[0], candidate_width=read_width)
        self.rest = HiddenLayers(config.hidden, config.dropout)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        read = None
        if tokens.events is not None:
            targets = tokens.targets_of_candidates().unbind(dim=2)
            histories = tokens.events.padded().by_behaviour()
            each = zip(self.attention, targets, histories, strict=True)
            read = torch.cat([attend(target, *history) for attend, target, history in each], dim=-1)
        shared = self.rest(self.first(tokens, candidate=read))
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))
