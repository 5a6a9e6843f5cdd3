"""Categorical tokens: one per field (INFNet 3.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import Layout
from infnet.features import Side
from infnet.layers.embedding import EmbeddingTable
from infnet.layers.gather import RowIndex, segment_starts

__all__ = ["FieldTokenizer", "RowProjection", "gather_rows", "mean_of_present"]


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Table (U, d), rows (...) -> (..., d)."""
    return RowIndex(rows, table.shape[0]).gather(table)


def mean_of_present(table: Tensor, rows: Tensor) -> Tensor:
    """Average of the rows (n, k), -1 for padding: table (U, d) -> (n, d); zeros where nothing is present."""
    present = rows >= 0
    counts = present.sum(dim=1)
    sums = RowIndex(rows[present], table.shape[0]).sums(table, segment_starts(counts))
    return sums / counts.clamp(min=1)[:, None]


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
    """Turns the fields of one or several sides into tokens: ids embedded, tags averaged, dense values projected.

    Several sides are embedded in one gather, so that their tokens stand side by side without a copy.
    """

    def __init__(self, layout: Layout, sides: Sequence[Side], width: int) -> None:
        super().__init__()
        single: list[int] = []
        self._tags: list[slice] = []
        self._dense: list[slice] = []
        names: dict[str, list[str]] = {"id": [], "ids": [], "dense": []}
        ids_before = dense_before = 0
        for side in sides:
            for field in layout.side(side):
                names[field.storage].append(field.name)
            ids, dense = layout.id_columns(side), layout.dense_columns(side)
            storage = {f.name: f.storage for f in layout.side(side)}
            single += [ids_before + c.start for name, c in ids.items() if storage[name] == "id"]
            self._tags += [_shifted(c, ids_before) for name, c in ids.items() if storage[name] == "ids"]
            self._dense += [_shifted(c, dense_before) for c in dense.values()]
            ids_before += layout.id_width(side)
            dense_before += layout.dense_width(side)
        self._all_single = not self._tags and not self._dense
        self.register_buffer("_single", torch.tensor(single, dtype=torch.int64), persistent=False)
        self._single: Tensor
        self.dense = nn.ModuleList(nn.Linear(c.stop - c.start, width) for c in self._dense)
        self.names = (*names["id"], *names["ids"], *names["dense"])
        """Field names in token order."""

    @property
    def num_tokens(self) -> int:
        """Tokens per entity."""
        return len(self.names)

    def forward(self, embedded: Tensor, *values: FieldValues) -> Tensor:
        """Embedded rows (U, d), each side's values of the same n entities -> (n, num_tokens, d)."""
        ids = values[0].ids if len(values) == 1 else torch.cat([v.ids for v in values], dim=1)
        if self._all_single:
            return gather_rows(embedded, ids)
        dense = values[0].dense if len(values) == 1 else torch.cat([v.dense for v in values], dim=1)
        parts = [gather_rows(embedded, ids[:, self._single])]
        parts += [mean_of_present(embedded, ids[:, columns])[:, None] for columns in self._tags]
        parts += [linear(dense[:, columns])[:, None] for linear, columns in zip(self.dense, self._dense, strict=True)]
        return torch.cat(parts, dim=1)


def _shifted(columns: slice, by: int) -> slice:
    return slice(columns.start + by, columns.stop + by)
