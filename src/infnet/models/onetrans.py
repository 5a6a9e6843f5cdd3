"""OneTrans: events and fields as the tokens of one causal transformer.

Z. Zhang et al., "OneTrans: Unified Feature Interaction and Sequence Modeling with One Transformer in Industrial
Recommender", arXiv 2510.26104 (2025). Sequential tokens (S-tokens) share their weights, each non-sequential token
(NS-token) has weights of its own, and the older S-tokens drop out layer by layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.dropout import Dropout
from infnet.layers.events import EventSequence
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.layers.mlp import MLP, GroupedLinear
from infnet.layers.multi_head import candidate_multi_head, causal_mask, multi_head
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["OneTrans", "OneTransConfig"]

_EPS = 1e-6
"""Added to a root mean square before division."""


class OneTransConfig(ModelConfig):
    """Settings of OneTrans."""

    event_position: bool = True
    """Add an embedding of an event's place in its history, even where the dataset's spec asks for none."""
    token_width: PositiveInt = 32
    """Width of the transformer's tokens."""
    num_field_tokens: PositiveInt = 8
    """NS-tokens; one linear layer turns all fields into them (the paper's auto-split tokenizer)."""
    num_layers: PositiveInt = 2
    """Transformer blocks."""
    num_recent: PositiveInt = 8
    """Most recent events of each behaviour that are left in the last layer; in between, they shrink linearly. No
    shrinking from a behaviour's length on."""
    num_heads: PositiveInt = 2
    """Attention heads."""
    ffn_factor: PositiveInt = 2
    """Hidden units of a token's network over its width."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> OneTransConfig:
        if self.token_width % self.num_heads:
            raise ValueError(f"token_width {self.token_width} is not divisible by num_heads {self.num_heads}")
        return self


class _RMSNorm(nn.Module):
    """Tokens over the root of their mean square, channels scaled: B. Zhang, R. Sennrich, arXiv 1910.07467 (2019).

    Written with the vector's norm, which is faster on a CPU than PyTorch's module.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        rms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True) / math.sqrt(tokens.shape[-1])
        return tokens * (self.weight / (rms + _EPS))


class _Block(nn.Module):
    """Mixed causal attention and mixed networks, each of normalised tokens and added to its input.

    The last block reads S-tokens and leaves them as they are.
    """

    def __init__(self, config: OneTransConfig, is_last: bool) -> None:
        super().__init__()
        width, fields = config.token_width, config.num_field_tokens
        hidden = config.ffn_factor * width
        self.num_heads = config.num_heads
        self.norm, self.ffn_norm = _RMSNorm(width), _RMSNorm(width)
        self.query = None if is_last else nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.ffn = None if is_last else MLP(width, (hidden,), width, config.dropout)
        self.field_query_key_value = GroupedLinear(fields, width, 3 * width)
        self.field_ffn = nn.Sequential(
            GroupedLinear(fields, width, hidden),
            nn.ReLU(),
            Dropout(config.dropout),
            GroupedLinear(fields, hidden, width),
        )
        self.out = nn.Linear(width, width)
        causal = torch.ones(fields, fields, dtype=torch.bool).tril()
        self.register_buffer("_causal", causal, persistent=False)
        self._causal: Tensor

    def forward(self, events: Tensor, visible: Tensor, present: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            events: S-tokens (R, n, D), of which the first q are updated.
            visible: (R, q, n) bool, which S-tokens they see.
            present: (R, n) bool, which S-tokens the NS-tokens see.
            fields: NS-tokens (R, N, m, D).

        Returns:
            (R, q, D) and (R, N, m, D).
        """
        normed, num_queries = self.norm(events), visible.shape[1]
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        query, *own = self.field_query_key_value(self.norm(fields)).chunk(3, dim=-1)
        read = candidate_multi_head(query, (keys, values), (own[0], own[1]), present, self._causal, self.num_heads)
        fields = fields + self.out(read)
        fields = fields + self.field_ffn(self.ffn_norm(fields))
        events = events[:, :num_queries]
        if self.query is not None and self.ffn is not None:
            read = multi_head(self.query(normed[:, :num_queries]), keys, values, visible, self.num_heads)
            events = events + self.out(read)
            events = events + self.ffn(self.ffn_norm(events))
        return events, fields


@dataclass(frozen=True)
class _STokens:
    """S-tokens, laid out from those that stay longest to those that drop out first."""

    tokens: Tensor
    """(R, n, D)."""
    present: Tensor
    """(R, n) bool."""
    place: Tensor
    """(n,) in the sequence, newest first."""
    num_left: list[int]
    """How many are left after each layer; none after the last, where nobody reads them."""


class _Sequence(nn.Module):
    """The events of all behaviours as one sequence, each behaviour closed by the separator ([SEP]).

    A behaviour that the layout names later is the older one here, as the times of events of different behaviours are
    not compared.
    """

    def __init__(self, layout: Layout, config: OneTransConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.width, config.token_width) if layout.behaviours else None
        self.separator = nn.Parameter(torch.empty(config.token_width).normal_(std=config.token_width**-0.5))
        self.num_separators = max(1, len(layout.behaviours))
        lengths = torch.tensor([b.length for b in layout.behaviours], dtype=torch.int64)
        dropped = (lengths - config.num_recent).clamp(min=0)
        steps = torch.arange(1, config.num_layers)[:, None]
        kept = lengths - dropped * steps // max(config.num_layers - 1, 1)
        self.register_buffer("_kept", kept, persistent=False)
        self._kept: Tensor
        """(num_layers - 1, F) most recent events of each behaviour that are left after each layer but the last."""

    def forward(self, events: EventSequence | None, num_requests: int) -> _STokens:
        """All requests' S-tokens; the separator alone without behaviours."""
        count = self.num_separators
        separators = self.separator.expand(num_requests, count, -1)
        present = torch.ones(num_requests, count, dtype=torch.bool, device=separators.device)
        if events is None or self.project is None:
            place = torch.zeros(count, dtype=torch.int64, device=separators.device)
            return _STokens(separators, present, place, [count] * len(self._kept) + [0])
        history = events.padded()
        lengths = torch.tensor(history.lengths, device=separators.device)
        start = lengths.cumsum(0) - lengths
        behaviour = torch.arange(count, device=separators.device).repeat_interleave(lengths)
        column = torch.arange(len(behaviour), device=separators.device)
        is_left = column - start[behaviour] < self._kept[:, behaviour]  # (num_layers - 1, L')
        order = is_left.sum(dim=0).sort(descending=True, stable=True).indices
        tokens = self.project(history.tokens.index_select(1, order))
        # A separator is newer than the events that it closes.
        of_separators = start + torch.arange(count, device=separators.device)
        return _STokens(
            tokens=torch.cat([separators, tokens], dim=1),
            present=torch.cat([present, history.present.index_select(1, order)], dim=1),
            place=torch.cat([of_separators, (column + behaviour + 1)[order]]),
            num_left=[*(is_left.sum(dim=1) + count).tolist(), 0],
        )


@register_model("onetrans")
class OneTrans(RankingModel):
    """S-tokens of all events, NS-tokens of all fields, OneTrans blocks, and a tower per task over the NS-tokens.

    S-tokens see the S-tokens before them; NS-tokens see all S-tokens and the NS-tokens before them. Nobody but a
    candidate's own NS-tokens sees the candidate, so the S-tokens are computed once per request (the paper's caching of
    keys and values). The most recent events are counted by behaviour, where the paper counts them in the sequence.
    """

    config_type: ClassVar[type[ModelConfig]] = OneTransConfig
    config: OneTransConfig

    def __init__(self, layout: Layout, config: OneTransConfig) -> None:
        super().__init__(layout, config)
        self.sequence = _Sequence(layout, config)
        width = config.num_field_tokens * config.token_width
        self.fields = InputLinear(self.inputs, width)
        last = config.num_layers - 1
        self.blocks = nn.ModuleList(_Block(config, is_last=i == last) for i in range(config.num_layers))
        self.norm = _RMSNorm(config.token_width)
        self.heads = TaskHeads(len(layout.tasks), width, config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        fields = self.fields(tokens).unflatten(-1, (self.config.num_field_tokens, -1))
        sequence = self.sequence(tokens.events, tokens.num_requests)
        visible = causal_mask(sequence.place, sequence.present, sequence.num_left[0])
        events = sequence.tokens
        for block, num_queries in zip(self.blocks, sequence.num_left, strict=True):
            length = events.shape[1]
            seen = visible[:, :num_queries, :length]
            events, fields = block(events, seen, sequence.present[:, :length], fields)
        shared = self.norm(fields).flatten(2)
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))
