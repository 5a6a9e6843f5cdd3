"""Categorical tokens: one per field (INFNet 3.1, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import Layout
from infnet.features import Side
from infnet.layers.embedding import EmbeddingTable
from infnet.layers.gather import RowIndex

__all__ = ["FieldTokenizer", "RowProjection", "gather_rows", "mean_of_present"]


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Table (U, d), rows (...) -> (..., d)."""
    return RowIndex(rows, table.shape[0]).gather(table)


def mean_of_present(table: Tensor, rows: Tensor) -> Tensor:
    """Average of the rows (n, k), -1 for padding: table (U, d) -> (n, d); zeros where nothing is present."""
    present = rows >= 0
    bags = present.nonzero()[:, 0]
    sums = RowIndex(rows[present], table.shape[0]).sums(table, bags, rows.shape[0])
    return sums / present.sum(dim=1, keepdim=True).clamp(min=1)


class RowProjection(nn.Module):
    """Embedding rows of their own width, brought to the token width once per distinct row of the batch."""

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Identity() if embedding_width == width else nn.Linear(embedding_width, width, bias=False)

    def forward(self, table: EmbeddingTable, batch: RequestBatch) -> Tensor:
        """(U, d)."""
        projected: Tensor = self.project(table(batch.rows))
        return projected


class FieldTokenizer(nn.Module):
    """Turns the fields of one side into tokens: ids embedded, tags averaged, dense values projected."""

    def __init__(self, layout: Layout, side: Side, width: int) -> None:
        super().__init__()
        fields, columns = layout.side(side), layout.id_columns(side)
        single = [columns[f.name].start for f in fields if f.storage == "id"]
        self._all_single = all(f.storage == "id" for f in fields)
        self.register_buffer("_single", torch.tensor(single, dtype=torch.int64), persistent=False)
        self._single: Tensor
        self._tags = [columns[f.name] for f in fields if f.storage == "ids"]
        self._dense = list(layout.dense_columns(side).values())
        self.dense = nn.ModuleList(nn.Linear(c.stop - c.start, width) for c in self._dense)
        self.names = tuple(f.name for storage in ("id", "ids", "dense") for f in fields if f.storage == storage)
        """Field names in token order."""

    @property
    def num_tokens(self) -> int:
        """Tokens per entity."""
        return len(self.names)

    def forward(self, embedded: Tensor, values: FieldValues) -> Tensor:
        """Embedded rows (U, d), values of n entities -> (n, num_tokens, d)."""
        if self._all_single:
            return gather_rows(embedded, values.ids)
        parts = [gather_rows(embedded, values.ids[:, self._single])]
        parts += [mean_of_present(embedded, values.ids[:, columns])[:, None] for columns in self._tags]
        parts += [
            linear(values.dense[:, columns])[:, None] for linear, columns in zip(self.dense, self._dense, strict=True)
        ]
        return torch.cat(parts, dim=1)
