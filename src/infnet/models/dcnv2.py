"""DCNv2: a cross network of bounded degree beside, or below, a deep network.

R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
WWW 2021, arXiv 2008.13535; over the same tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from infnet.data.layout import Layout
from infnet.layers.cross import CrossAndDeep, CrossNetwork, MixtureCrossNetwork, cross_width
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["DCNv2", "DCNv2Config"]


class DCNv2Config(ModelConfig):
    """Settings of DCNv2."""

    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the deep network stands beside the cross network or reads its output."""
    num_cross_layers: int = Field(default=3, ge=1)
    """Cross layers; L of them make interactions of up to L + 1 inputs."""
    cross: Literal["full", "mixture"] = "full"
    """One square matrix a cross layer (eq. 1), or a mixture of low-rank experts (eqs. 3 and 4)."""
    rank: int = Field(default=64, ge=1)
    """Of an expert; for the mixture."""
    num_experts: int = Field(default=4, ge=1)
    """Experts a cross layer; for the mixture."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers of the deep network."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("dcnv2")
class DCNv2(RankingModel):
    """The cross and the deep network, shared by all tasks, and one tower per task over both."""

    config_type: ClassVar[type[ModelConfig]] = DCNv2Config
    config: DCNv2Config

    def __init__(self, layout: Layout, config: DCNv2Config) -> None:
        super().__init__(layout, config)
        width, num_layers = cross_width(self.inputs), config.num_cross_layers
        cross = (
            CrossNetwork(width, num_layers)
            if config.cross == "full"
            else MixtureCrossNetwork(width, num_layers, config.rank, config.num_experts)
        )
        self.trunk = CrossAndDeep(self.inputs, cross, config.hidden, config.structure, config.dropout)
        self.heads = TaskHeads(
            len(layout.tasks),
            config.hidden[-1],
            config.head_hidden,
            shared_width=width if config.structure == "parallel" else 0,
            dropout=config.dropout,
        )

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        deep, crossed = self.trunk(tokens)
        return self.heads(deep[..., None, :].expand(-1, -1, len(self.layout.tasks), -1), crossed)
