"""DIN + DCNv2 + PLE: target attention over histories, a cross network over everything, experts shared and specific.

The production model that K. Li et al., "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation
Systems", arXiv 2508.11565, compare INFNet with online. Its parts are those of G. Zhou et al., "Deep Interest Network
for Click-Through Rate Prediction", KDD 2018; R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical
Lessons for Web-scale Learning to Rank Systems", WWW 2021; and H. Tang et al., "Progressive Layered Extraction (PLE)",
RecSys 2020. How they are put together is not published; this is one way.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.cross import MixtureCrossNetwork, cross_width
from infnet.layers.experts import ProgressiveExtraction
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.layers.target_attention import TargetAttention
from infnet.models.base import ModelConfig, RankingModel, register_model
from infnet.models.ple import PLEConfig

__all__ = ["DINDCNv2PLE", "DINDCNv2PLEConfig"]


class DINDCNv2PLEConfig(PLEConfig):
    """Settings of PLE, and those of the target attention and the cross network below it."""

    attention_hidden: tuple[PositiveInt, ...] = Field(default=(36,), min_length=1)
    """Layers of the network that weighs an event."""
    num_cross_layers: int = Field(default=3, ge=1)
    """Cross layers; L of them make interactions of up to L + 1 inputs."""
    cross_rank: int = Field(default=64, ge=1)
    """Of each expert of a cross layer."""
    num_cross_experts: int = Field(default=4, ge=1)
    """Low-rank experts of a cross layer."""


@register_model("din_dcnv2_ple")
class DINDCNv2PLE(RankingModel):
    """The online baseline.

    Each behaviour has a target attention of its own, in which the candidate's item weighs the behaviour's events. The
    input x_0 is all field tokens and these weighted sums, one per behaviour. A cross network of low-rank experts makes
    x_L of it, and the first level of PLE, experts and gates, reads x_0 and x_L side by side.
    """

    config_type: ClassVar[type[ModelConfig]] = DINDCNv2PLEConfig
    config: DINDCNv2PLEConfig

    def __init__(self, layout: Layout, config: DINDCNv2PLEConfig) -> None:
        super().__init__(layout, config)
        width = cross_width(self.inputs)
        further = self.inputs.num_behaviours * config.width + width
        self.attention = nn.ModuleList(
            TargetAttention(config.width, config.attention_hidden) for _ in layout.behaviours
        )
        self.cross = MixtureCrossNetwork(width, config.num_cross_layers, config.cross_rank, config.num_cross_experts)
        self.extraction = ProgressiveExtraction(
            len(layout.tasks), config.num_levels, config.num_shared, config.num_specific, config.hidden, config.dropout
        )
        self.first = InputLinear(self.inputs, self.extraction.first_width, candidate_width=further)
        self.gates = InputLinear(self.inputs, self.extraction.num_logits, candidate_width=further)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        attended = self._attended(tokens)
        crossed = self.cross(torch.cat([tokens.fields().flatten(2), *attended], dim=2))
        further = torch.cat([*attended, crossed], dim=2)
        fused = self.extraction(self.first(tokens, candidate=further), self.gates(tokens, candidate=further))
        logits: Tensor = self.heads(fused)
        return logits

    def _attended(self, tokens: InputTokens) -> list[Tensor]:
        """What each candidate reads from each behaviour, (R, N, d) each."""
        if tokens.events is None:
            return []
        targets = tokens.targets_of_candidates().unbind(dim=2)
        histories = tokens.events.padded().by_behaviour()
        return [
            attend(target, events, present)
            for attend, target, (events, present) in zip(self.attention, targets, histories, strict=True)
        ]
