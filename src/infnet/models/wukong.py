"""Wukong: factorization machines stacked, so that the degree of interactions doubles with every layer.

B. Zhang et al., "Wukong: Towards a Scaling Law for Large-Scale Recommendation", 2024, arXiv 2403.02545; over the same
tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.layers.mlp import MLP
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["Wukong", "WukongConfig"]


class WukongConfig(ModelConfig):
    """Settings of Wukong."""

    num_layers: int = Field(default=2, ge=1)
    """Interaction layers; L of them make interactions of up to 2^L tokens."""
    num_fm_tokens: int = Field(default=16, ge=1)
    """n_F, tokens that a layer makes of interactions."""
    num_linear_tokens: int = Field(default=16, ge=1)
    """n_L, tokens that a layer makes by linear compression."""
    rank: int = Field(default=8, ge=1)
    """k, columns of Y in the interactions X X^t Y."""
    fm_hidden: tuple[PositiveInt, ...] = (256,)
    """Hidden layers of the MLP over the interactions."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


class _InteractionLayer(nn.Module):
    """LN(FMB(X) beside LCB(X), + X): (..., n, d) -> (..., n_F + n_L, d), X compressed linearly if the counts differ.

    FMB(X) = MLP(LN(flatten(X X^t Y))) as n_F tokens; LCB(X) = W X, n_L tokens.
    """

    def __init__(self, num_tokens: int, config: WukongConfig) -> None:
        super().__init__()
        d, num_fm, num_linear = config.width, config.num_fm_tokens, config.num_linear_tokens
        self.shape = (num_fm, d)
        keeps_count = num_tokens == num_fm + num_linear
        self.sizes = (config.rank, num_linear, 0 if keeps_count else num_fm + num_linear)
        bound = 1 / math.sqrt(num_tokens)
        self.compress = nn.Parameter(torch.empty(sum(self.sizes), num_tokens).uniform_(-bound, bound))
        """Y^t, then the weights of the LCB, then those of the residual."""
        self.norm_pairs = nn.LayerNorm(num_tokens * config.rank)
        self.mlp = MLP(num_tokens * config.rank, config.fm_hidden, num_fm * d, config.dropout)
        self.norm = nn.LayerNorm(d)

    def forward(self, tokens: Tensor) -> Tensor:
        summary, linear, residual = (self.compress @ tokens).split(self.sizes, dim=-2)
        pairs = tokens @ summary.mT  # X (X^t Y): never X X^t
        of_pairs = self.mlp(self.norm_pairs(pairs.flatten(-2))).unflatten(-1, self.shape)
        kept = residual if self.sizes[-1] else tokens
        out: Tensor = self.norm(torch.cat([of_pairs, linear], dim=-2) + kept)
        return out


@register_model("wukong")
class Wukong(RankingModel):
    """Interaction layers over all field tokens and one token per behaviour, shared by all tasks, and a tower each."""

    config_type: ClassVar[type[ModelConfig]] = WukongConfig
    config: WukongConfig

    def __init__(self, layout: Layout, config: WukongConfig) -> None:
        super().__init__(layout, config)
        num_out = config.num_fm_tokens + config.num_linear_tokens
        num_in = [self.inputs.num_fields + self.inputs.num_behaviours, *[num_out] * (config.num_layers - 1)]
        self.layers = nn.Sequential(*(_InteractionLayer(n, config) for n in num_in))
        self.heads = TaskHeads(len(layout.tasks), num_out * config.width, config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        fields = tokens.fields()
        if tokens.events is not None:
            pooled = tokens.events.means()[:, None].expand(-1, tokens.num_candidates, -1, -1)
            fields = torch.cat([fields, pooled], dim=2)
        shared = self.layers(fields).flatten(2)
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))
