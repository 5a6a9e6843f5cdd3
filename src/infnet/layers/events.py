"""Sequence tokens: one per past event, made once per distinct item of the batch and gathered (INFNet 3.1, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from infnet.data.batch import RequestBatch
from infnet.data.batches import NUM_GAP_BUCKETS
from infnet.data.layout import Layout
from infnet.layers.gather import RowIndex, segment_numbers, segment_starts
from infnet.layers.tokens import gather_rows, mean_of_present

__all__ = ["EventSequence", "EventTokens", "PackedRequests", "PaddedHistory", "pack_requests"]


@dataclass(frozen=True)
class PackedRequests:
    """Requests in order of the length of their histories, cut into chunks that are padded to their own longest.

    Attention over a set does not care where a token stands, so a request's events are moved together, and padding
    costs next to nothing however unequal the histories are.
    """

    order: Tensor
    """(R,) requests, shortest history first; as they come if there is one chunk."""
    chunks: list[tuple[int, int]]
    """(requests, length) of each chunk."""
    lengths: Tensor
    """(R,) events of each request, in ``order``."""
    slots: Tensor
    """(n,) place of each present event, request-major, in the chunks laid end to end."""

    @property
    def num_slots(self) -> int:
        """Places in all chunks."""
        return sum(requests * length for requests, length in self.chunks)


def pack_requests(lengths: Tensor, chunk_size: int) -> PackedRequests:
    """Plan the chunks.

    Args:
        lengths: (R,) events of each request.
        chunk_size: Requests a chunk.
    """
    device, num_requests = lengths.device, len(lengths)
    num_chunks = max(1, round(num_requests / chunk_size))
    order = lengths.sort(stable=True).indices if num_chunks > 1 else torch.arange(num_requests, device=device)
    sorted_lengths = lengths[order]
    bounds = [num_requests * i // num_chunks for i in range(num_chunks + 1)]
    chunks = [(b - a, max(1, int(sorted_lengths[a:b].max()))) for a, b in pairwise(bounds)]
    # Where each request's first event goes: chunks end to end, rows of a chunk side by side.
    sizes = torch.tensor([n for n, _ in chunks], device=device)
    row_length = torch.tensor([length for _, length in chunks], device=device).repeat_interleave(sizes)
    first_slot = torch.empty_like(order)
    first_slot[order] = row_length.cumsum(0) - row_length
    first_event = lengths.cumsum(0) - lengths
    slots = (first_slot - first_event).repeat_interleave(lengths)
    return PackedRequests(order, chunks, sorted_lengths, slots + torch.arange(len(slots), device=device))


@dataclass(frozen=True)
class PaddedHistory:
    """Events written out, behaviours side by side, each most recent first and padded at its end."""

    tokens: Tensor
    """(R, L', d); padding holds anything finite."""
    present: Tensor
    """(R, L') bool."""
    lengths: tuple[int, ...]
    """(F,) columns of each behaviour: the longest history of the batch, at least 1; their sum is L'."""

    def by_behaviour(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens (R, n_a, d) and presence (R, n_a) of each behaviour."""
        return list(zip(self.tokens.split(self.lengths, dim=1), self.present.split(self.lengths, dim=1), strict=True))


@dataclass(frozen=True)
class EventSequence:
    """What :class:`EventTokens` makes of a batch; n counts the events present in all requests together."""

    table: Tensor
    """(F * E, d): the token of every distinct event item under each behaviour, before position and gap."""
    index: RowIndex
    """(n,) the row of ``table`` of each event: request by request, behaviour by behaviour, most recent first."""
    counts: Tensor
    """(R, F) int64 events of each behaviour."""
    extra: Tensor | None
    """(n, d) position and gap embeddings to add; None if no behaviour asks for them."""
    chunk_size: int
    """Requests padded together."""

    @property
    def num_requests(self) -> int:
        """R."""
        return self.counts.shape[0]

    @cached_property
    def lengths(self) -> Tensor:
        """(R,) events of each request."""
        return self.counts.sum(dim=1)

    @cached_property
    def request_starts(self) -> Tensor:
        """(R + 1,) where each request's events begin."""
        return segment_starts(self.lengths)

    @cached_property
    def bag_starts(self) -> Tensor:
        """(R * F + 1,) where those of each request and behaviour begin."""
        return segment_starts(self.counts.flatten())

    @cached_property
    def bags(self) -> Tensor:
        """(n,) request * F + behaviour of each event."""
        return segment_numbers(self.bag_starts, len(self.index.rows))

    @cached_property
    def request(self) -> Tensor:
        """(n,) request of each event."""
        return segment_numbers(self.request_starts, len(self.index.rows))

    @cached_property
    def rank(self) -> Tensor:
        """(n,) place of each event in its history, the most recent one 0."""
        return torch.arange(len(self.bags), device=self.bags.device) - self.bag_starts[self.bags]

    @cached_property
    def packed(self) -> PackedRequests:
        """Where the events go if each request's are to stand side by side."""
        return pack_requests(self.lengths, self.chunk_size)

    def chunks(self) -> list[Tensor]:
        """Tokens (requests, length, d) of each chunk of ``packed``; padding holds anything finite."""
        tokens = self.index.place(self.table, self.packed.slots, self.packed.num_slots)
        if self.extra is not None:
            tokens = tokens.index_add(0, self.packed.slots, self.extra.to(tokens.dtype))
        parts = tokens.split([n * length for n, length in self.packed.chunks])
        return [part.unflatten(0, chunk) for part, chunk in zip(parts, self.packed.chunks, strict=True)]

    def padded(self) -> PaddedHistory:
        """All events written out, for models to which their order matters."""
        lengths = self.counts.amax(dim=0).clamp(min=1)
        total = int(lengths.sum())
        first = torch.arange(self.num_requests, device=lengths.device)[:, None] * total + lengths.cumsum(0) - lengths
        slots = first.flatten()[self.bags] + self.rank
        tokens = self.index.place(self.table, slots, self.num_requests * total)
        if self.extra is not None:
            tokens = tokens.index_add(0, slots, self.extra.to(tokens.dtype))
        present = torch.zeros(self.num_requests * total, dtype=torch.bool, device=slots.device)
        present[slots] = True
        shape = (self.num_requests, total)
        return PaddedHistory(tokens.unflatten(0, shape), present.view(shape), tuple(lengths.tolist()))

    def means(self) -> Tensor:
        """Mean token of each behaviour's events, zeros where there are none: (R, F, d)."""
        sums = self.index.sums(self.table, self.bag_starts)
        if self.extra is not None:
            sums = sums.index_add(0, self.bags, self.extra.to(sums.dtype))
        return sums.unflatten(0, self.counts.shape) / self.counts.clamp(min=1)[..., None]


class EventTokens(nn.Module):
    """Makes the tokens of past events.

    The item fields of an event are combined by ``sum``, or by ``concat`` and a projection that each behaviour has of
    its own, so that a click and an impression of the same item are different tokens.
    """

    chunk_size = 512
    """Requests padded together."""

    def __init__(self, layout: Layout, width: int, combine: str = "concat") -> None:
        super().__init__()
        self._behaviours = layout.behaviours
        columns, at = layout.id_columns("item"), 0
        self._item_columns = [c for name in layout.event_fields for c in range(columns[name].start, columns[name].stop)]
        self._columns: dict[str, slice] = {}
        for name in layout.event_fields:
            size = columns[name].stop - columns[name].start
            self._columns[name] = slice(at, at + size)
            at += size
        tags = {f.name for f in layout.side("item") if f.storage == "ids"}
        self._tags = [name for name in self._columns if name in tags]
        self._shared_table = combine == "sum" and len({b.fields for b in self._behaviours}) == 1
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
        self.width = width
        self._has_extra = any(b.position or b.gap for b in self._behaviours)
        self._lengths = [b.length for b in self._behaviours]
        columns_of = torch.arange(len(self._lengths)).repeat_interleave(torch.tensor(self._lengths))
        self.register_buffer("_behaviour", columns_of.to(torch.int32), persistent=False)
        self._behaviour: Tensor

    def forward(self, embedded: Tensor, batch: RequestBatch) -> EventSequence:
        """Embedded rows (U, d) -> the tokens of every request's events."""
        table = self._table(embedded, batch.event_ids).flatten(0, 1)
        places = _true_places(batch.history_present.flatten())
        rows = batch.history if self._shared_table else batch.history + self._behaviour * batch.event_ids.shape[0]
        here = batch.history_present.split(self._lengths, dim=1)
        counts = torch.stack([part.sum(dim=1) for part in here], dim=1)
        events = EventSequence(
            table=table,
            index=RowIndex(rows.flatten().index_select(0, places).to(torch.int64), table.shape[0]),
            counts=counts,
            extra=None,
            chunk_size=self.chunk_size,
        )
        return replace(events, extra=self._extra(events, batch, places)) if self._has_extra else events

    def of_items(self, embedded: Tensor, item_ids: Tensor) -> Tensor:
        """Items as events, without position and gap: embedded rows (U, d), item id matrix (J, w) -> (F, J, d)."""
        table = self._table(embedded, item_ids[:, self._item_columns])
        return table.expand(len(self._behaviours), -1, -1)

    def _table(self, embedded: Tensor, event_ids: Tensor) -> Tensor:
        """(F, E, d), or (1, E, d) if an item is the same token under every behaviour."""
        single = [name for name in self._columns if name not in self._tags]
        ids = torch.stack([event_ids[:, self._columns[name].start] for name in single], dim=1) if single else None
        fields = {} if ids is None else dict(zip(single, gather_rows(embedded, ids).unbind(dim=1), strict=True))
        fields |= {name: mean_of_present(embedded, event_ids[:, self._columns[name]]) for name in self._tags}
        tables: list[Tensor] = []
        joined: dict[tuple[str, ...], Tensor] = {}  # of behaviours with the same fields once
        for behaviour, project in zip(self._behaviours, self.projections, strict=True):
            if behaviour.fields not in joined:
                parts = [fields[name] for name in behaviour.fields]
                is_concat = self.combine == "concat"
                joined[behaviour.fields] = torch.cat(parts, dim=-1) if is_concat else torch.stack(parts).sum(dim=0)
            if not (tables and self._shared_table):
                tables.append(project(joined[behaviour.fields]))
        return torch.stack(tables)

    def _extra(self, events: EventSequence, batch: RequestBatch, places: Tensor) -> Tensor:
        of_event = self._behaviour[places % batch.history.shape[1]]
        out = self.position[0].new_zeros(len(places), self.width)  # not the table's type, which autocast may narrow
        for index, declared in enumerate(self._behaviours):
            if not (declared.position or declared.gap):
                continue
            here = (of_event == index).nonzero()[:, 0]
            parts = []
            if declared.position:
                parts.append(gather_rows(self.position[index], events.rank[here]))
            if declared.gap:
                parts.append(gather_rows(self.gap[index], batch.history_gap.flatten()[places[here]]))
            out = out.index_add(0, here, torch.stack(parts).sum(dim=0))
        return out


def _true_places(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than nonzero()
    return mask.nonzero()[:, 0]
