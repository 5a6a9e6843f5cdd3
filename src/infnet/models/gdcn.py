"""GDCN: DCNv2 whose cross layers pass through a gate, beside or below a deep network.

F. Wang et al., "Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction", CIKM 2023,
arXiv 2311.04635; over the same tokens as INFNet, histories mean-pooled. The paper's field-level dimension
optimisation, which gives every field a width of its own, is left out: all tokens here are of one width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from infnet.data.layout import Layout
from infnet.layers.cross import CrossAndDeep, GatedCrossNetwork, cross_width
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["GDCN", "GDCNConfig"]


class GDCNConfig(ModelConfig):
    """Settings of GDCN."""

    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the deep network stands beside the gated cross network (GDCN-P) or reads its output (GDCN-S)."""
    num_cross_layers: int = Field(default=3, ge=1)
    """Gated cross layers; L of them make interactions of up to L + 1 inputs."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers of the deep network."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


@register_model("gdcn")
class GDCN(RankingModel):
    """The gated cross and the deep network, shared by all tasks, and one tower per task over both."""

    config_type: ClassVar[type[ModelConfig]] = GDCNConfig
    config: GDCNConfig

    def __init__(self, layout: Layout, config: GDCNConfig) -> None:
        super().__init__(layout, config)
        width = cross_width(self.inputs)
        cross = GatedCrossNetwork(width, config.num_cross_layers)
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
