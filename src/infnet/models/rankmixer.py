"""RankMixer: a few wide tokens, mixed without parameters and transformed by a network each.

J. Zhu et al., "RankMixer: Scaling Up Ranking Models in Industrial Recommenders", CIKM 2025, arXiv 2507.15551. Its
sparse mixture-of-experts variant is left out: it pays only at sizes where dense networks no longer fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.layout import Layout
from infnet.layers.attention import CrossAttention, cross_attend, history_tokens, project
from infnet.layers.dropout import Dropout
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.layers.mlp import GroupedLinear
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["RankMixer", "RankMixerConfig", "mix_tokens"]


class RankMixerConfig(ModelConfig):
    """Settings of RankMixer."""

    num_tokens: int = Field(default=16, ge=3)
    """T, tokens that all inputs are cut into; also the number of heads of the mixing."""
    token_width: PositiveInt = 64
    """D, width of such a token; a multiple of ``num_tokens``."""
    num_blocks: int = Field(default=2, ge=1)
    """L."""
    ffn_factor: PositiveInt = 4
    """k, hidden units of a token's network over its width."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""

    @model_validator(mode="after")
    def _tokens_divide_width(self) -> RankMixerConfig:
        if self.token_width % self.num_tokens:
            raise ValueError(f"token_width {self.token_width} is not divisible by num_tokens {self.num_tokens}")
        return self


def mix_tokens(tokens: Tensor) -> Tensor:
    """Multi-head token mixing: every new token is one head of all tokens, side by side.

    Shape: (..., T, D) -> (..., T, D), with as many heads as tokens.
    """
    num_tokens = tokens.shape[-2]
    return tokens.unflatten(-1, (num_tokens, -1)).transpose(-2, -3).flatten(-2)


def _token_counts(widths: Sequence[int], num_tokens: int) -> list[int]:
    """Tokens for each group of inputs, ``num_tokens`` in all, so that the widest chunk is as narrow as can be."""
    counts = [min(width, 1) for width in widths]
    while sum(counts) < num_tokens:
        fullest = max(range(len(widths)), key=lambda i: widths[i] / max(counts[i], 1))
        counts[fullest] += 1
    return counts


class _ChunkTokens(nn.Module):
    """Values (..., w) cut into n chunks of equal width, the last padded by zeros, each with its own projection."""

    def __init__(self, in_width: int, num_chunks: int, width: int) -> None:
        super().__init__()
        chunk = -(-in_width // num_chunks)
        self.padding = chunk * num_chunks - in_width
        self.project = GroupedLinear(num_chunks, chunk, width)

    def forward(self, values: Tensor) -> Tensor:
        """(..., w) -> (..., n, width)."""
        num_chunks, chunk, _ = self.project.weight.shape
        tokens: Tensor = self.project(F.pad(values, (0, self.padding)).unflatten(-1, (num_chunks, chunk)))
        return tokens


class _Block(nn.Module):
    """Token mixing, then a network per token, each added to its input and normalised."""

    def __init__(self, config: RankMixerConfig) -> None:
        super().__init__()
        width, hidden = config.token_width, config.ffn_factor * config.token_width
        self.mixed_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            GroupedLinear(config.num_tokens, width, hidden),
            nn.GELU(),
            Dropout(config.dropout),
            GroupedLinear(config.num_tokens, hidden, width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., T, D) -> (..., T, D)."""
        mixed = self.mixed_norm(mix_tokens(tokens) + tokens)
        out: Tensor = self.norm(self.ffn(mixed) + mixed)
        return out


@register_model("rankmixer")
class RankMixer(RankingModel):
    """Fields and histories cut into tokens, RankMixer blocks, the tokens' mean, and a tower per task.

    The paper takes a history in as what a sequence module makes of it; here that is each behaviour's mean and, for
    each behaviour, what the candidate reads from all events as one of that behaviour's. It groups inputs by meaning
    before cutting them: the groups here are what belongs to the request, to the item, and to both.
    """

    config_type: ClassVar[type[ModelConfig]] = RankMixerConfig
    config: RankMixerConfig

    def __init__(self, layout: Layout, config: RankMixerConfig) -> None:
        super().__init__(layout, config)
        history = self.inputs.num_behaviours * config.width
        of_request, of_item, own = (n * config.width for n in self.inputs.num_tokens)
        widths = (of_request + history, of_item, own + history)
        counts = _token_counts(widths, config.num_tokens)
        self.request, self.item, self.own = (
            _ChunkTokens(width, count, config.token_width) if count else None
            for width, count in zip(widths, counts, strict=True)
        )
        self.interest = CrossAttention(config.width) if history else None
        self.blocks = nn.Sequential(*(_Block(config) for _ in range(config.num_blocks)))
        self.heads = TaskHeads(len(layout.tasks), config.token_width, config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        pooled = self.blocks(self._cut(tokens)).mean(dim=2)
        return self.heads(pooled[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))

    def _cut(self, tokens: InputTokens) -> Tensor:
        """The inputs as mixer tokens (R, N, T, D), each group of them made once where it lives (identity B)."""
        request, own = tokens.request.flatten(1), tokens.own.flatten(2)
        if tokens.events is not None and self.interest is not None:
            targets = tokens.targets_of_candidates()  # (R, N, F, d)
            found = cross_attend(
                {"seq": history_tokens(tokens.events)}, {"item": targets}, {("item", "seq"): self.interest}
            )
            read = project([*found.values()], [self.interest])
            request = torch.cat([request, tokens.events.means().flatten(1)], dim=1)
            own = torch.cat([own, read.flatten(2)], dim=2)
        parts = []
        if self.request is not None:
            parts.append(self.request(request)[:, None].expand(-1, tokens.num_candidates, -1, -1))
        if self.item is not None:
            of_item = self.item(tokens.item.flatten(1))  # (J, T_i, D)
            parts.append(tokens.candidates.gather(of_item.flatten(1)).unflatten(-1, of_item.shape[1:]))
        if self.own is not None:
            parts.append(self.own(own))
        return torch.cat(parts, dim=2)
