"""Shared-Bottom: one network for all tasks up to a tower each.

R. Caruana, "Multitask Learning", Machine Learning 28 (1997); over the same tokens as INFNet, histories mean-pooled.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.layers.dropout import Dropout
from infnet.layers.events import EventTokens
from infnet.layers.heads import TaskHeads
from infnet.layers.mlp import SplitLinear
from infnet.layers.tokens import FieldTokenizer, gather_rows
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
        d = config.width
        self.request = FieldTokenizer(layout, ("user", "context"), d)
        self.item, self.candidate = FieldTokenizer(layout, ("item",), d), FieldTokenizer(layout, ("candidate",), d)
        self.events = EventTokens(layout, d, "sum") if layout.behaviours else None
        num_request = self.request.num_tokens + len(layout.behaviours)
        self.first = SplitLinear(
            [num_request * d, self.item.num_tokens * d, self.candidate.num_tokens * d], config.hidden[0]
        )
        rest: list[nn.Module] = [nn.ReLU(), Dropout(config.dropout)]
        for i, width in enumerate(config.hidden[1:]):
            rest += [nn.Linear(config.hidden[i], width), nn.ReLU(), Dropout(config.dropout)]
        self.rest = nn.Sequential(*rest)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, N, T)."""
        embedded = self.rows(self.embedding, batch)
        request = [self.request(embedded, batch.user, batch.context)]
        if self.events is not None:
            request.append(self._pooled(embedded, batch, self.events))
        hidden = gather_rows(self.first.part(1, self.item(embedded, batch.item).flatten(1)), batch.candidate_item)
        hidden += self.first.part(0, torch.cat(request, dim=1).flatten(1), with_bias=True)[:, None]
        if self.candidate.num_tokens:
            own = self.candidate(embedded, batch.candidate).unflatten(0, batch.present.shape)
            hidden += self.first.part(2, own.flatten(2))
        shared = self.rest(hidden)
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))

    def _pooled(self, embedded: Tensor, batch: RequestBatch, events: EventTokens) -> Tensor:
        """Mean token of each behaviour's events: (R, F, d)."""
        sequence = events(embedded, batch)
        sums = sequence.index.sums(sequence.table, sequence.bags, sequence.num_bags)
        if sequence.extra is not None:
            sums = sums.index_add(0, sequence.bags, sequence.extra)
        counts = torch.bincount(sequence.bags, minlength=sequence.num_bags).clamp(min=1)
        return (sums / counts[:, None]).unflatten(0, (batch.num_requests, -1))
