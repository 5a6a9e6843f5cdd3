"""Mixtures of experts: several networks of one shape side by side, and gates that average what they say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from infnet.layers.dropout import Dropout
from infnet.layers.mlp import GroupedLinear

__all__ = ["Experts", "ProgressiveExtraction"]


class Experts(nn.Module):
    """What follows the first linear layers of E experts, all made at once elsewhere: ReLU, dropout, further layers.

    Each expert has its own weights and the shape of :class:`infnet.layers.mlp.HiddenLayers`.
    """

    def __init__(self, num_experts: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.layers = nn.ModuleList(GroupedLinear(num_experts, i, o) for i, o in pairwise(widths))
        self.dropout = Dropout(dropout)

    def forward(self, first: Tensor) -> Tensor:
        """The first layers' outputs side by side (..., E * widths[0]) -> (..., E, widths[-1])."""
        out: Tensor = self.dropout(torch.relu(first.unflatten(-1, (self.num_experts, -1))))
        for layer in self.layers:
            out = self.dropout(torch.relu(layer(out)))
        return out


class ProgressiveExtraction(nn.Module):
    """Shared experts and experts of each task's own, level by level.

    H. Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020. A task's gate chooses between the task's own experts and the shared ones. On the next
    level a task's experts and gate read what its gate chose; the shared experts read what a further gate chose from
    all experts, which the last level does not need. One level is the paper's CGC.

    The linear layers that begin the first level's experts and gates are made elsewhere, where the network's input is.
    Experts stand in order of tasks, the shared ones last; so do gates.

    Args:
        num_tasks: T.
        num_levels: Extraction networks on top of each other.
        num_shared: Shared experts of a level.
        num_specific: Experts of each task on a level; 0 leaves MMoE.
        widths: Hidden layers of an expert.
        dropout: After each of them.
    """

    def __init__(
        self,
        num_tasks: int,
        num_levels: int,
        num_shared: int,
        num_specific: int,
        widths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        levels = [
            _Level(num_tasks, num_shared, num_specific, widths, dropout, is_last=index == num_levels - 1)
            for index in range(num_levels)
        ]
        self.first_width = levels[0].num_experts * widths[0]
        """Of all first layers of the first level's experts together."""
        self.num_logits = sum(levels[0].num_logits)
        """Of all gates of the first level together."""
        self.levels = nn.ModuleList(levels)
        self.between = nn.ModuleList(_Beginnings(level, widths[-1], widths[0]) for level in levels[1:])

    def forward(self, first: Tensor, logits: Tensor) -> Tensor:
        """First layers (..., first_width) and gates (..., num_logits) of the first level -> (..., T, widths[-1])."""
        fused: Tensor = self.levels[0](first, logits)
        for begin, level in zip(self.between, list(self.levels)[1:], strict=True):
            fused = level(*begin(fused))
        return fused


class _Level(nn.Module):
    """One level: its experts after their first layers, and what its gates make of them."""

    def __init__(
        self, num_tasks: int, num_shared: int, num_specific: int, widths: Sequence[int], dropout: float, is_last: bool
    ) -> None:
        super().__init__()
        self.num_tasks, self.num_shared, self.num_specific, self.is_last = num_tasks, num_shared, num_specific, is_last
        self.num_experts = num_tasks * num_specific + num_shared
        self.num_logits = (num_tasks * (num_specific + num_shared), 0 if is_last else self.num_experts)
        """Of the tasks' gates and of the shared one."""
        self.experts = Experts(self.num_experts, widths, dropout)

    def forward(self, first: Tensor, logits: Tensor) -> Tensor:
        """(..., E * widths[0]), (..., sum of num_logits) -> (..., T, widths[-1]); T + 1 before the last level."""
        of_tasks, of_shared = logits.split(self.num_logits, dim=-1)
        chosen = of_tasks.unflatten(-1, (self.num_tasks, -1)).softmax(dim=-1)
        specific, shared = chosen.split([self.num_specific, self.num_shared], dim=-1)
        # Zeros for the other tasks' experts: one product with all experts is faster than one by task and one for all.
        is_own = torch.eye(self.num_tasks, dtype=specific.dtype, device=specific.device)[:, :, None]
        gates = torch.cat([(is_own * specific[..., None, :]).flatten(-2), shared], dim=-1)  # (..., T, E)
        if not self.is_last:
            gates = torch.cat([gates, of_shared[..., None, :].softmax(dim=-1)], dim=-2)
        return gates @ self.experts(first)


class _Beginnings(nn.Module):
    """The linear layers that begin the experts and gates of a later level: tasks' in one product, shared in another."""

    def __init__(self, level: _Level, in_width: int, out_width: int) -> None:
        super().__init__()
        self.num_tasks = level.num_tasks
        of_tasks, of_shared = level.num_logits
        self._specific = [level.num_specific * out_width, of_tasks // level.num_tasks]
        self._shared = [level.num_shared * out_width, of_shared]
        self.specific = GroupedLinear(level.num_tasks, in_width, sum(self._specific))
        self.shared = nn.Linear(in_width, sum(self._shared))

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """(..., T + 1, in) -> first layers (..., E * out) and gates (..., sum of num_logits)."""
        of_tasks, of_shared = fused.split([self.num_tasks, 1], dim=-2)
        specific, gates = self.specific(of_tasks).split(self._specific, dim=-1)
        shared, shared_gate = self.shared(of_shared.squeeze(-2)).split(self._shared, dim=-1)
        return torch.cat([specific.flatten(-2), shared], dim=-1), torch.cat([gates.flatten(-2), shared_gate], dim=-1)
