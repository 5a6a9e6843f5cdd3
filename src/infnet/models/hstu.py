"""HSTU: attention without softmax along each history, whose items the candidates join as its next ones.

J. Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024, arXiv 2402.17152. The paper trains on one sequence of all actions in order of time. The
order of events of different behaviours is not part of a batch, so each behaviour is a sequence by itself, with layers
of its own, and the bias of attention depends on positions alone, not on times. What the candidate's place in each
sequence then holds goes beside all field tokens through layers that all tasks share, to one tower per task.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.layout import Layout
from infnet.layers.dropout import Dropout
from infnet.layers.gather import RowIndex
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear, InputTokens
from infnet.layers.mlp import HiddenLayers
from infnet.layers.tokens import gather_rows
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["HSTU", "HSTUConfig", "HSTULayer"]

_UNSEEN = -1e4
"""Added to a query's product with a key: SiLU and its slope are zero there to the last bit."""
_CHUNK_SIZE = 256
"""Requests padded together."""


class HSTUConfig(ModelConfig):
    """Settings of HSTU."""

    num_layers: int = Field(default=2, ge=1)
    """Layers over each behaviour."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads."""
    max_events: int = Field(default=50, ge=1)
    """Most recent events of each behaviour that are read; all but the last layer cost their square."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers that all tasks share."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> HSTUConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        return self


class HSTULayer(nn.Module):
    """One layer: Y = f_2(Norm(A V) * U) + X with A = SiLU(Q K^t + rab) / n and U, V, Q, K = split(SiLU(f_1(Norm(X)))).

    Eqs. 1 to 3 of the paper. Dividing by n and the norm in front of f_1 come from its authors' code; without the norm,
    small embeddings would leave nothing to learn from. n is the longest a sequence can be, not what this batch holds,
    so that the other rows change nothing.

    An event sees itself and the older ones of its request, a candidate itself and all events, so that events are
    encoded once per request, whatever its candidates.

    Args:
        width: d.
        num_heads: Dividing it.
        max_events: Of a history.
        dropout: On what enters f_2.
    """

    def __init__(self, width: int, num_heads: int, max_events: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1 / (max_events + 1)
        self.norm = nn.LayerNorm(width)
        self.seen = nn.Linear(width, 2 * width)
        """f_1's part for V and K."""
        self.seeing = nn.Linear(width, 2 * width)
        """f_1's part for U and Q."""
        self.position = nn.Parameter(torch.empty(max_events + 1).normal_(std=0.02))
        """rab: by how many places a key is older than the query."""
        self.read_norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = Dropout(dropout)
        self.second = nn.Linear(width, width)

    def forward(
        self, targets: Tensor, tokens: Tensor, present: Tensor, *, with_tokens: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Targets (R, N, d), tokens (R, n, d) most recent first, present (R, n) bool -> both, one layer on.

        ``with_tokens=False``: leave the events as they are, because no layer follows that would read them.
        """
        normed, own_normed = self.norm(tokens), self.norm(targets)
        value, key = F.silu(self.seen(normed)).chunk(2, dim=-1)  # (R, n, d), heads side by side
        value = value * present[..., None]  # nobody reads padding
        own_value, own_key = F.silu(self.seen(own_normed)).chunk(2, dim=-1)
        own_gate, own_query = F.silu(self.seeing(own_normed)).chunk(2, dim=-1)
        back = torch.arange(tokens.shape[1], device=tokens.device)
        to_itself = F.silu((own_query * own_key).unflatten(-1, (self.num_heads, -1)).sum(dim=-1) + self.position[0])
        on_itself = (to_itself[..., None] * own_value.unflatten(-1, (self.num_heads, -1))).flatten(2)
        on_events = self._attend(own_query, key, value, self._bias(back[None] + 1))
        targets = self._updated(targets, on_itself + on_events, own_gate)
        if with_tokens:
            # To the right of an event stand the older ones.
            bias = self._bias((back - back[:, None]).clamp(min=0)).masked_fill(back < back[:, None], _UNSEEN)
            gate, query = F.silu(self.seeing(normed)).chunk(2, dim=-1)
            tokens = self._updated(tokens, self._attend(query, key, value, bias), gate)
        return targets, tokens

    def _bias(self, distance: Tensor) -> Tensor:
        return gather_rows(self.position[:, None], distance).squeeze(-1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """SiLU(Q K^t + bias) V: queries (R, q, d), bias (q or 1, n) -> (R, q, d)."""
        # Head by head: BLAS reads a slice where it is, but four dimensions would be copied into three.
        heads = (part.chunk(self.num_heads, dim=-1) for part in (query, key, value))
        return torch.cat([F.silu(torch.baddbmm(bias, q, k.mT)) @ v for q, k, v in zip(*heads, strict=True)], dim=-1)

    def _updated(self, x: Tensor, read: Tensor, gate: Tensor) -> Tensor:
        return x + self.second(self.dropout(self.read_norm(read * self.scale) * gate))


@register_model("hstu")
class HSTU(RankingModel):
    """All field tokens and the candidate's vector from each history, through shared layers, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = HSTUConfig
    config: HSTUConfig

    def __init__(self, layout: Layout, config: HSTUConfig) -> None:
        super().__init__(layout, config)
        self.behaviours = nn.ModuleList(
            nn.ModuleList(
                HSTULayer(config.width, config.num_heads, min(b.length, config.max_events), config.dropout)
                for _ in range(config.num_layers)
            )
            for b in layout.behaviours
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
            each = zip(self.behaviours, targets, histories, strict=True)
            read = torch.cat([self._read(layers, target, *history) for layers, target, history in each], dim=-1)
        shared = self.rest(self.first(tokens, candidate=read))
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))

    def _read(self, layers: nn.Module, targets: Tensor, history: Tensor, present: Tensor) -> Tensor:
        """One behaviour: the candidates (R, N, d) as its next events, after all layers.

        Requests go through the layers in chunks of similar length, padded no further than their own longest history.
        """
        assert isinstance(layers, nn.ModuleList)
        history = history[:, : self.config.max_events]
        num_requests = len(history)
        lengths, order = present[:, : history.shape[1]].sum(dim=1).sort(stable=True)
        index, back = RowIndex(order, num_requests), RowIndex(order.argsort(), num_requests)
        by_length = [index.gather(x.flatten(1)).unflatten(1, x.shape[1:]) for x in (targets, history)]
        num_chunks = max(1, num_requests // _CHUNK_SIZE)
        chunks = zip(*(x.tensor_split(num_chunks) for x in (*by_length, lengths)), strict=True)
        out = []
        for own, padded, length in chunks:
            longest = max(1, int(length[-1]))
            here = torch.arange(longest, device=length.device) < length[:, None]
            target, tokens = own, padded[:, :longest]
            for i, layer in enumerate(layers):
                target, tokens = layer(target, tokens, here, with_tokens=i + 1 < len(layers))
            out.append(target)
        return back.gather(torch.cat(out).flatten(1)).unflatten(1, targets.shape[1:])
