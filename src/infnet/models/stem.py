"""STEM: every task has embeddings of its own beside the shared ones, and trains only those that are its.

L. Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, arXiv 2308.13537;
over the same fields as INFNet, histories mean-pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from infnet.data.layout import Layout
from infnet.layers.experts import Experts
from infnet.layers.gather import RowIndex
from infnet.layers.heads import TaskHeads
from infnet.layers.inputs import InputTokens
from infnet.models.base import ModelConfig, RankingModel, register_model

__all__ = ["STEM", "STEMConfig"]


class STEMConfig(ModelConfig):
    """Settings of STEM."""

    width: int = Field(default=16, ge=1)
    """d, width of each of a value's T + 1 embeddings."""
    event_combine: Literal["sum"] = "sum"
    """An event's item fields are added: a projection of their concatenation would mix the tasks' embeddings."""
    num_shared: int = Field(default=2, ge=1)
    """Experts that read the shared embeddings."""
    num_specific: int = Field(default=2, ge=1)
    """Experts of each task, which read its own embeddings."""
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    """Layers of each expert."""
    head_hidden: tuple[PositiveInt, ...] = (64,)
    """Layers of each task's tower."""

    @field_validator("embedding_width")
    @classmethod
    def _is_unprojected(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("a projection would mix the tasks' embeddings, set width instead")
        return value


class _SliceLinear(nn.Module):
    """Linear layers of G networks side by side, each over its own slice of all tokens: one product for each part.

    What :class:`infnet.layers.inputs.InputLinear` is to one network: a request's part is computed once per request, an
    item's once per distinct item (identity B).
    """

    def __init__(self, num_groups: int, in_widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(sum(in_widths))
        self.weights = nn.ParameterList(
            torch.empty(num_groups, width, out_width).uniform_(-bound, bound) for width in in_widths
        )
        self.bias = nn.Parameter(torch.empty(num_groups, out_width).uniform_(-bound, bound))

    def forward(self, slices: Sequence[Tensor], candidates: RowIndex) -> Tensor:
        """Of requests (G, R, in_0), distinct items (G, J, in_1), candidates (G, R * N, in_2) -> (R, N, G, out)."""
        request, item, own = [
            (part @ weight).transpose(0, 1) for part, weight in zip(slices, self.weights, strict=True)
        ]  # (.., G, out)
        out = candidates.gather(item.flatten(1)).unflatten(-1, item.shape[1:])
        out += (request + self.bias)[:, None]
        if self.weights[2].shape[1]:
            out += own.unflatten(0, out.shape[:2])
        return out


@register_model("stem")
class STEM(RankingModel):
    """All fields and the mean event of each behaviour, through shared and specific experts, to one tower per task.

    The one embedding table holds T + 1 embeddings of every value side by side, those of each task and then the shared
    one, so a token is T + 1 slices of width d. A task's experts read its own slices, shared experts the shared ones,
    and its gate, softmax over all experts of a linear layer, the sum of both.

    All forward, task-specific backward: task t reads sum_e g_te x_e over all experts, where another task's x_e is
    taken as a constant, so that its loss trains its own experts and embeddings and the shared ones.
    """

    config_type: ClassVar[type[ModelConfig]] = STEMConfig
    config: STEMConfig

    def __init__(self, layout: Layout, config: STEMConfig) -> None:
        super().__init__(layout, config)
        num_tasks = len(layout.tasks)
        num_experts = num_tasks * config.num_specific + config.num_shared
        of_request, of_item, own = self.inputs.num_tokens
        widths = [n * config.width for n in (of_request + self.inputs.num_behaviours, of_item, own)]
        self.specific = _SliceLinear(num_tasks, widths, config.num_specific * config.hidden[0])
        self.shared = _SliceLinear(1, widths, config.num_shared * config.hidden[0])
        self.experts = Experts(num_experts, config.hidden, config.dropout)
        self.gates = _SliceLinear(num_tasks, widths, num_experts)
        self.heads = TaskHeads(num_tasks, config.hidden[-1], config.head_hidden, dropout=config.dropout)
        is_own = torch.eye(num_tasks, dtype=torch.bool).repeat_interleave(config.num_specific, dim=1)
        is_shared = torch.ones(num_tasks, config.num_shared, dtype=torch.bool)
        self.register_buffer("_trains", torch.cat([is_own, is_shared], dim=1), persistent=False)
        self._trains: Tensor
        """(T, E) whether a task's loss reaches an expert."""

    @classmethod
    def token_width(cls, layout: Layout, config: ModelConfig) -> int:
        """One embedding for each task and one for all, side by side."""
        return (len(layout.tasks) + 1) * config.width

    def score(self, tokens: InputTokens) -> Tensor:
        """Logits (R, N, T)."""
        num_tasks = len(self.layout.tasks)
        request = tokens.request
        if tokens.events is not None:
            request = torch.cat([request, tokens.events.means()], dim=1)
        parts = [self._slices(part) for part in (request, tokens.item, tokens.own.flatten(0, 1))]
        own, shared = zip(*(part.split([num_tasks, 1]) for part in parts), strict=True)
        specific_first = self.specific(own, tokens.candidates).flatten(2)
        shared_first = self.shared(shared, tokens.candidates).flatten(2)
        experts = self.experts(torch.cat([specific_first, shared_first], dim=-1))  # (R, N, E, hidden[-1])
        both = [of_task + of_all for of_task, of_all in zip(own, shared, strict=True)]
        gates = self.gates(both, tokens.candidates).softmax(dim=-1)  # (R, N, T, E)
        mixed = (gates * self._trains) @ experts + (gates * ~self._trains) @ experts.detach()
        logits: Tensor = self.heads(mixed)
        return logits

    def _slices(self, tokens: Tensor) -> Tensor:
        """Tokens (n, M, (T + 1) * d) -> (T + 1, n, M * d)."""
        return tokens.unflatten(-1, (-1, self.config.width)).movedim(2, 0).flatten(2)
