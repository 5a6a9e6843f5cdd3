"""LONGER: a transformer over the whole history, read by a few global tokens.

Z. Chai et al., "LONGER: Scaling Up Long Sequence Modeling in Industrial Recommenders", RecSys 2025, arXiv 2505.04421.
Adjacent events are merged into one token; the first layer lets the global tokens and the most recent merged tokens read
all of them, and later layers go on with those few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.layout import Layout
from infnet.layers.events import EventSequence
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, Inputs, InputTokens
from infnet.layers.mlp import MLP, HiddenLayers
from infnet.layers.multi_head import candidate_multi_head, causal_mask, multi_head
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["Longer", "LongerConfig"]


class LongerConfig(ModelConfig):
    """Settings of LONGER."""

    event_position: bool = True
    """Add an embedding of an event's place in its history, even where the dataset's spec asks for none."""
    merge: PositiveInt = 4
    """K, adjacent events that become one token."""
    inner_transformer: bool = True
    """Let merged events attend to each other first (InnerTrans); else they are only joined."""
    token_width: PositiveInt = 32
    """D, width of merged and global tokens; K * d in the paper."""
    num_recent: PositiveInt = 4
    """k, most recent merged tokens of each behaviour that are queries of the first layer and tokens of later ones."""
    num_cls: PositiveInt = 1
    """Learned global tokens, beside one for the candidate and one for user and context."""
    num_layers: PositiveInt = 2
    """Cross-causal and self-causal layers together."""
    num_heads: PositiveInt = 2
    """Attention heads; the inner transformer has one."""
    ffn_factor: PositiveInt = 2
    """Hidden units of a layer's network over its width."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers that all tasks share."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> LongerConfig:
        if self.token_width % self.num_heads:
            raise ValueError(f"token_width {self.token_width} is not divisible by num_heads {self.num_heads}")
        return self


@dataclass(frozen=True)
class _MergedHistory:
    """A request's merged events, the most recent of each behaviour before all others."""

    tokens: Tensor
    """(R, n, D)."""
    present: Tensor
    """(R, n) bool."""
    place: Tensor
    """(n,) in the sequence of all behaviours one after the other, each most recent first."""
    num_recent: int
    """Tokens that are queries: the first ones."""


class _Block(nn.Module):
    """Attention, then a network per token, each of normalised tokens and added to its input."""

    def __init__(self, width: int, num_heads: int, ffn_factor: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.ffn = MLP(width, (ffn_factor * width,), width, dropout)

    def forward(self, tokens: Tensor, visible: Tensor, present: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One layer of a request's tokens and its candidates'.

        Args:
            tokens: (R, n, D), of which the first q are queries.
            visible: (R, q, n) bool, which tokens they see.
            present: (R, n) bool, which tokens the candidates see.
            targets: (R, N, 1, D) of the candidates, which also see themselves.

        Returns:
            (R, q, D) and (R, N, 1, D).
        """
        out, keys, values = self._read(tokens, visible)
        normed = self.norm(targets)
        own_key, own_value = self.key_value(normed).chunk(2, dim=-1)
        itself = torch.ones(1, 1, dtype=torch.bool, device=tokens.device)
        read = candidate_multi_head(
            self.query(normed), (keys, values), (own_key, own_value), present, itself, self.num_heads
        )
        return out, self._added(targets, read)

    def of_tokens(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """The same without candidates: (B, n, D), (B, q, n) -> (B, q, D)."""
        return self._read(tokens, visible)[0]

    def _read(self, tokens: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed, num_queries = self.norm(tokens), visible.shape[1]
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        read = multi_head(self.query(normed[:, :num_queries]), keys, values, visible, self.num_heads)
        return self._added(tokens[:, :num_queries], read), keys, values

    def _added(self, tokens: Tensor, read: Tensor) -> Tensor:
        tokens = tokens + self.out(read)
        out: Tensor = tokens + self.ffn(self.ffn_norm(tokens))
        return out


class _TokenMerge(nn.Module):
    """Every K adjacent events of a behaviour become one token, counted from the most recent one (LONGER, 3.4)."""

    def __init__(self, config: LongerConfig, num_behaviours: int) -> None:
        super().__init__()
        self.merge, self.num_recent, self.num_behaviours = config.merge, config.num_recent, num_behaviours
        self.inner = _Block(config.width, 1, config.ffn_factor, config.dropout) if config.inner_transformer else None
        self.project = nn.Linear(config.merge * config.width, config.token_width)

    def forward(self, events: EventSequence) -> _MergedHistory:
        """Groups are merged where they stand end to end, so that padding costs nothing, then put in their requests."""
        num_groups = events.counts.flatten().add(self.merge - 1) // self.merge
        first = num_groups.cumsum(0) - num_groups
        total = int(num_groups.sum())
        slots = (first[events.bags] + events.rank // self.merge) * self.merge + events.rank % self.merge
        tokens = events.index.place(events.table, slots, total * self.merge)
        if events.extra is not None:
            tokens = tokens.index_add(0, slots, events.extra.to(tokens.dtype))
        present = torch.zeros(total * self.merge, dtype=torch.bool, device=slots.device)
        present[slots] = True
        tokens, present = tokens.unflatten(0, (total, self.merge)), present.view(total, self.merge)
        if self.inner is not None:
            tokens = self.inner.of_tokens(tokens, present[:, None].expand(-1, self.merge, -1))
        merged = self.project(tokens.masked_fill(~present[..., None], 0.0).flatten(1))
        bags = torch.arange(len(num_groups), device=slots.device).repeat_interleave(num_groups)
        return self._placed(merged, bags, torch.arange(total, device=slots.device) - first[bags], num_groups)

    def _placed(self, merged: Tensor, bags: Tensor, rank: Tensor, num_groups: Tensor) -> _MergedHistory:
        """Each merged token in its column of its request."""
        num_requests = len(num_groups) // self.num_behaviours
        request, behaviour = bags // self.num_behaviours, bags % self.num_behaviours
        longest = num_groups.view(num_requests, -1).amax(dim=0)
        start = longest.cumsum(0) - longest
        width = int(longest.sum())
        is_older = torch.arange(width, device=bags.device) - start.repeat_interleave(longest) >= self.num_recent
        place = is_older.sort(stable=True).indices
        slots = request * width + place.argsort()[start[behaviour] + rank]
        tokens = merged.new_zeros(num_requests * width, merged.shape[1]).index_copy(0, slots, merged)
        present = torch.zeros(num_requests * width, dtype=torch.bool, device=bags.device)
        present[slots] = True
        return _MergedHistory(
            tokens=tokens.view(num_requests, width, merged.shape[1]),
            present=present.view(num_requests, width),
            place=place,
            num_recent=width - int(is_older.sum()),
        )


class _Reader(nn.Module):
    """What the global tokens take from the history: candidate, learned, and user and context, in this order.

    A token sees itself and those after it; as events stand most recent first, that is an event's past, and nobody sees
    the candidate. So all but the candidate's own token is computed once per request (LONGER, 3.5 and 3.6).
    """

    def __init__(self, config: LongerConfig, inputs: Inputs) -> None:
        super().__init__()
        width = config.token_width
        of_request = inputs.num_tokens[0] * inputs.width
        self.history = _TokenMerge(config, inputs.num_behaviours)
        self.target = InputLinear(inputs, width)
        self.cls = nn.Parameter(torch.empty(config.num_cls, width).normal_(std=width**-0.5))
        self.user = nn.Linear(of_request, width) if of_request else None
        self.num_shared = config.num_cls + int(self.user is not None)
        """Global tokens that a request's candidates share."""
        self.blocks = nn.ModuleList(
            _Block(width, config.num_heads, config.ffn_factor, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: InputTokens, events: EventSequence) -> tuple[Tensor, Tensor]:
        """What the request's global tokens hold (R, num_shared * D), and the candidate's (R, N, D)."""
        history, target = self.history(events), self.target(tokens)[:, :, None]
        shared = [self.cls.expand(tokens.num_requests, -1, -1)]
        if self.user is not None:
            shared.append(self.user(tokens.request.flatten(1))[:, None])
        num_recent = self.num_shared + history.num_recent
        sequence = torch.cat([*shared, history.tokens], dim=1)
        present = F.pad(history.present, (self.num_shared, 0), value=True)
        place = torch.cat([torch.arange(self.num_shared, device=present.device), history.place + self.num_shared])
        visible = causal_mask(place, present, num_recent)
        for index, block in enumerate(self.blocks):
            # After the last layer nobody reads the events.
            num_queries = self.num_shared if index == len(self.blocks) - 1 else num_recent
            length = sequence.shape[1]
            sequence, target = block(sequence, visible[:, :num_queries, :length], present[:, :length], target)
        return self.norm(sequence).flatten(1), self.norm(target).flatten(2)


@register_model("longer")
class Longer(RankingModel):
    """All field tokens and what the global tokens hold, through shared layers, to a tower per task.

    The paper has one sequence ordered by time and one task. Here the histories of all behaviours stand one after the
    other, as the times of their events are not compared, each behaviour counts its own most recent tokens, and tasks
    have a tower each. Without behaviours there is nothing to read, and the shared layers see the fields alone.
    """

    config_type: ClassVar[type[ModelConfig]] = LongerConfig
    config: LongerConfig

    def __init__(self, layout: Layout, config: LongerConfig) -> None:
        super().__init__(layout, config)
        self.reader = _Reader(config, self.inputs) if layout.behaviours else None
        request_width, candidate_width = 0, 0
        if self.reader is not None:
            request_width, candidate_width = self.reader.num_shared * config.token_width, config.token_width
        self.first = InputLinear(
            self.inputs, config.hidden[0], request_width=request_width, candidate_width=candidate_width
        )
        self.rest = HiddenLayers(config.hidden, config.dropout)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        of_request, of_candidate = None, None
        if self.reader is not None and tokens.events is not None:
            of_request, of_candidate = self.reader(tokens, tokens.events)
        shared = self.rest(self.first(tokens, of_request, of_candidate))
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))
