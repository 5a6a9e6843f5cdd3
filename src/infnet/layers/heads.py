"""Task heads: one MLP of the same shape and its own weights per task (INFNet eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from infnet.layers.dropout import Dropout
from infnet.layers.mlp import GroupedLinear

__all__ = ["TaskHeads"]


class TaskHeads(nn.Module):
    """Own inputs (..., T, d) and, if ``shared_width``, inputs (..., shared_width) that all heads see -> (..., T)."""

    def __init__(
        self, num_tasks: int, width: int, hidden: Sequence[int], shared_width: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        widths = [width, *hidden, 1]
        self.own = nn.ModuleList(GroupedLinear(num_tasks, i, o) for i, o in pairwise(widths))
        self.shared = nn.Linear(shared_width, num_tasks * widths[1], bias=False) if shared_width else None
        self.dropout = Dropout(dropout)

    def forward(self, own: Tensor, shared: Tensor | None = None) -> Tensor:
        """One logit per task."""
        out = self.own[0](own)
        if self.shared is not None and shared is not None:
            out = out + self.shared(shared).view_as(out)
        for layer in list(self.own)[1:]:
            out = layer(self.dropout(torch.relu(out)))
        logits: Tensor = out.squeeze(-1)
        return logits
