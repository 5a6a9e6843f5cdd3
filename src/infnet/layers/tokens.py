"""Tokens of a batch: one per categorical field, one per past event (INFNet 3.1, eqs. 1 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.batches import NUM_GAP_BUCKETS
from infnet.data.layout import Layout
from infnet.features import Side
from infnet.layers.embedding import EmbeddingTable

__all__ = ["EventTokens", "FieldTokenizer", "RowProjection", "mean_of_present"]


def mean_of_present(embedded: Tensor, positions: Tensor) -> Tensor:
    """Average of the rows at positions (n, k), -1 for padding: (U, d) -> (n, d); zeros where nothing is present."""
    present = positions >= 0
    rows = F.embedding(positions.clamp(min=0), embedded) * present[..., None]
    return rows.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)


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
    """Turns the fields of some sides into tokens: ids embedded, tags averaged, dense values projected (eq. 1)."""

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
            return F.embedding(values.ids, embedded)
        parts = [F.embedding(values.ids[:, self._single], embedded)]
        parts += [mean_of_present(embedded, values.ids[:, columns])[:, None] for columns in self._tags]
        parts += [
            linear(values.dense[:, columns])[:, None] for linear, columns in zip(self.dense, self._dense, strict=True)
        ]
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class EventSequence:
    """What :class:`EventTokens` makes of a batch."""

    table: Tensor
    """(F * E, d): the token of every distinct event item under each behaviour, before position and gap."""
    index: Tensor
    """(R, L) int32 row of ``table``; any valid one where absent."""
    tokens: Tensor
    """(R, L, d)."""
    is_item_only: bool
    """Whether tokens are rows of ``table``: no behaviour adds positions or gaps."""


class EventTokens(nn.Module):
    """One token per past event, made once per distinct item of the batch and gathered (eq. 3).

    The item fields of an event are combined by ``sum``, or by ``concat`` and a projection that each behaviour has of
    its own, so that a click and an impression of the same item are different tokens.
    """

    def __init__(self, layout: Layout, width: int, combine: str = "concat") -> None:
        super().__init__()
        self._behaviours = layout.behaviours
        columns, at = layout.id_columns("item"), 0
        self._columns: dict[str, slice] = {}
        for name in layout.event_fields:
            size = columns[name].stop - columns[name].start
            self._columns[name] = slice(at, at + size)
            at += size
        self._tags = {f.name for f in layout.side("item") if f.storage == "ids"}
        self.combine = combine
        self.projections = nn.ModuleList(
            nn.Linear(width * len(b.fields), width) if combine == "concat" else nn.Identity() for b in self._behaviours
        )
        self.position = nn.ParameterList(
            torch.zeros(b.length, width).normal_(std=0.01) if b.position else torch.zeros(0) for b in self._behaviours
        )
        self.gap = nn.ParameterList(
            torch.zeros(NUM_GAP_BUCKETS, width).normal_(std=0.01) if b.gap else torch.zeros(0) for b in self._behaviours
        )

    def forward(self, embedded: Tensor, batch: RequestBatch) -> EventSequence:
        """Tokens of every request's events."""
        fields = {
            name: mean_of_present(embedded, batch.event_ids[:, columns])
            if name in self._tags
            else F.embedding(batch.event_ids[:, columns.start], embedded)
            for name, columns in self._columns.items()
        }
        tables = []
        for behaviour, project in zip(self._behaviours, self.projections, strict=True):
            parts = [fields[name] for name in behaviour.fields]
            tables.append(project(torch.cat(parts, dim=-1)) if self.combine == "concat" else torch.stack(parts).sum(0))
        table = torch.cat(tables)
        lengths = [b.length for b in self._behaviours]
        shift = torch.repeat_interleave(
            torch.arange(len(lengths), dtype=torch.int32, device=table.device) * batch.event_ids.shape[0],
            torch.tensor(lengths, device=table.device),
        )
        index = batch.history + shift
        tokens = F.embedding(index, table)
        extra = self._extra(batch)
        if extra is not None:
            tokens = tokens + extra
        return EventSequence(table, index, tokens, extra is None)

    def _extra(self, batch: RequestBatch) -> Tensor | None:
        """Position and time-gap embeddings (R or 1, L, d); None if no behaviour asks for them."""
        if not any(b.gap or b.position for b in self._behaviours):
            return None
        parts, at = [], 0
        num, width = batch.history.shape[0], next(p.shape[-1] for p in [*self.position, *self.gap] if p.numel())
        for behaviour, position, gap in zip(self._behaviours, self.position, self.gap, strict=True):
            part = position if behaviour.position else position.new_zeros(behaviour.length, width)
            part = part.expand(num, -1, -1)
            if behaviour.gap:
                part = part + F.embedding(batch.history_gap[:, at : at + behaviour.length], gap)
            parts.append(part)
            at += behaviour.length
        return torch.cat(parts, dim=1)
