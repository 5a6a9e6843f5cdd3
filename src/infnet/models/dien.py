"""DIEN: interests drawn from each history by a GRU, and how those that matter to a candidate evolved.

G. Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019, arXiv 1809.03672. The
paper has one task and one history; here each behaviour has recurrences of its own, and all tasks share the network up
to a tower each.
"""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputLinear
from infnet.layers.mlp import HiddenLayers
from infnet.layers.recurrent import AttentionalGRU, HistoryGRU, OldestFirst
from infnet.layers.tokens import gather_rows
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["DIEN", "DIENConfig", "Evolution"]


class DIENConfig(ModelConfig):
    """Settings of DIEN."""

    max_events: int = Field(default=20, ge=1)
    """Most recent events of each behaviour that are read: a recurrence takes them one after the other, so that its time
    on a CPU grows with the longest history of a batch, however many requests there are."""
    auxiliary_weight: float = Field(default=0.1, ge=0)
    """alpha, of the auxiliary loss (eqs. 6 and 7), which is a mean over all pairs of neighbouring events, so that long
    histories do not outweigh the tasks. After one epoch of KuaiRand-Pure, 0.1 ranks validation clicks better than 1
    with each of three seeds; 0 to do without."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers that all tasks share."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""


class Evolution(nn.Module):
    """One behaviour's interest extractor and interest evolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extractor = HistoryGRU(width)
        self.match = nn.Linear(width, width, bias=False)
        """W of eq. 8."""
        self.evolution = AttentionalGRU(width)

    def forward(self, targets: Tensor, tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (R, N, d), a history (R, n, d), present (R, n) -> final interests (R, N, d), zeros without events,
        and the extractor's states (R, n, d), once per request."""
        steps = OldestFirst(present)
        states = self.extractor(tokens, steps)
        logits = self.match(targets) @ states.mT  # (R, N, n)
        absent = ~present[:, None]
        # A finite floor, not -inf: softmax over an empty row would be NaN.
        weights = logits.masked_fill(absent, torch.finfo(logits.dtype).min).softmax(dim=-1)  # eq. 8
        return self.evolution(states, weights.masked_fill(absent, 0.0), steps), states


@register_model("dien")
class DIEN(RankingModel):
    """All field tokens and the final interest of each history, through shared layers, to one tower per task."""

    config_type: ClassVar[type[ModelConfig]] = DIENConfig
    config: DIENConfig

    def __init__(self, layout: Layout, config: DIENConfig) -> None:
        super().__init__(layout, config)
        self.behaviours = nn.ModuleList(Evolution(config.width) for _ in layout.behaviours)
        interest_width = self.inputs.num_behaviours * config.width
        self.first = InputLinear(self.inputs, config.hidden[0], candidate_width=interest_width)
        self.rest = HiddenLayers(config.hidden, config.dropout)
        self.heads = TaskHeads(len(layout.tasks), config.hidden[-1], config.head_hidden, dropout=config.dropout)
        self._auxiliary: Tensor | None = None

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (R, N, T)."""
        tokens = self.tokens(batch)
        self._auxiliary = None
        interests = None
        if tokens.events is not None:
            targets = tokens.targets_of_candidates().unbind(dim=2)
            histories = [
                (history[:, : self.config.max_events], present[:, : self.config.max_events])
                for history, present in tokens.events.padded().by_behaviour()
            ]
            each = zip(self.behaviours, targets, histories, strict=True)
            evolved = [evolve(target, *history) for evolve, target, history in each]
            interests = torch.cat([interest for interest, _ in evolved], dim=-1)
            if self.training and self.config.auxiliary_weight:
                states = [(state, present) for (_, state), (_, present) in zip(evolved, histories, strict=True)]
                self._auxiliary = self.config.auxiliary_weight * self._next_events(states, tokens.events.table, batch)
        shared = self.rest(self.first(tokens, candidate=interests))
        return self.heads(shared[..., None, :].expand(-1, -1, len(self.layout.tasks), -1))

    def auxiliary_loss(self) -> Tensor | None:
        """How badly the extractor's states tell the next event of the batch seen last from another one, weighted.

        None in eval mode, and for a dataset without behaviours.
        """
        return self._auxiliary

    def _next_events(self, states: list[tuple[Tensor, Tensor]], table: Tensor, batch: RequestBatch) -> Tensor:
        """Eq. 6: -log sigmoid(h_t . e_(t+1)) - log(1 - sigmoid(h_t . e')), e' another event of the batch.

        Events are taken before position and gap, which would tell the real one from a drawn one.
        """
        num_events = batch.event_ids.shape[0]
        starts = accumulate((b.length for b in self.layout.behaviours), initial=0)
        losses, counts = [], []
        for index, ((state, present), start) in enumerate(zip(states, starts, strict=False)):
            # The most recent event comes first: what follows column t stands in column t - 1.
            older, is_pair = state[:, 1:], present[:, 1:]
            following = batch.history[:, start : start + older.shape[1]].to(torch.int64)
            # An offset from 1 to E - 1 draws every event but the real one; a batch with one event has no other.
            offsets = torch.randint(1, max(num_events, 2), following.shape, device=following.device)
            rows = torch.stack([following, (following + offsets) % num_events], dim=-1)
            first = index * num_events % table.shape[0]  # all behaviours may share one table
            scores = gather_rows(table, first + rows) @ older[..., None]  # (R, n - 1, 2, 1)
            loss = F.softplus(-scores[..., 0, 0]) + F.softplus(scores[..., 1, 0])
            losses.append(loss.masked_fill(~is_pair, 0.0).sum())
            counts.append(is_pair.sum())
        return torch.stack(losses).sum() / torch.stack(counts).sum().clamp(min=1)
