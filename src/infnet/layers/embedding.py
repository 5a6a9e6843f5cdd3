"""The embedding table: one for all vocabularies, read once per batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EmbeddingTable"]


class EmbeddingTable(nn.Module):
    """Rows for every value of every vocabulary (INFNet 3.1, the tables E_j side by side).

    A batch lists the distinct rows it touches, so the gradient of :attr:`weight` is sparse with each row once, and a
    training step costs what the batch touches, whatever the size of the table.
    """

    def __init__(self, num_rows: int, width: int, std: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width).normal_(std=std))

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.weight.shape[1]

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (U,) -> (U, width)."""
        return F.embedding(rows, self.weight, sparse=True)
