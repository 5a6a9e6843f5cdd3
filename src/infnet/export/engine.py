"""Encoded requests in, logits out: what depends on an item alone is taken from tables, the rest computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infnet.data.layout import Layout
from infnet.export.graph import Backend, GraphInputs
from infnet.export.tables import Table
from infnet.features import Side

__all__ = ["EncodedRequest", "Engine", "EngineTables", "Values"]

_CHUNK = 1024
"""Candidates of one request computed at a time, which bounds memory."""
_FEW, _TOGETHER = 64, 512
"""Requests of at most so many candidates share a pass, up to so many candidates in all: for them what every pass costs
weighs more than the padding."""


class Values(NamedTuple):
    """What one side's fields are encoded to, of one entity or of n."""

    ids: NDArray[np.int32]
    """(id_width,) or (n, id_width) embedding rows, -1 for the padding of multi-valued fields."""
    dense: NDArray[np.float32]
    """(dense_width,) or (n, dense_width)."""


@dataclass(frozen=True)
class EncodedRequest:
    """One request in the numbering of the bundle: embedding rows, item indices, floats."""

    user: Values
    context: Values
    items: NDArray[np.integer]
    """(N,) item indices."""
    candidate: Values
    """Of each of N."""
    histories: Sequence[NDArray[np.integer]]
    """(n_a,) item indices of each behaviour, most recent first, at most as many as the layout says."""
    gaps: Sequence[NDArray[np.integer]] | None = None
    """(n_a,) bucket of the time since each event; None if no behaviour asks for it."""


@dataclass(frozen=True)
class EngineTables:
    """Everything beside the graph."""

    embedding: Table
    """(rows, 1, e)."""
    tokens: Table
    """(J, M_i + M_c, d): each item's tokens, and room for the candidate's own behind them."""
    events: Table | None
    """(J, F, d) each item as an event of each behaviour; (J, 1, d) if it is the same under all."""
    items: Mapping[str, Table]
    """What else the network reads of an item, in its order."""
    reads_targets: bool
    """Whether it reads the candidates' items as events."""
    dense: Mapping[str, NDArray[np.float32]]
    """``projection`` (e, d) if tokens are not as wide as the table; per dense field ``NAME.weight`` (w, d) and
    ``NAME.bias`` (d,); per behaviour ``position.NAME`` (length, d) and ``gap.NAME`` (buckets, d) if it has them."""


class Engine:
    """Scores encoded requests; safe to use from several threads.

    Args:
        layout: Of the model.
        tables: Read row by row.
        backend: Computes the rest.
    """

    def __init__(self, layout: Layout, tables: EngineTables, backend: Backend) -> None:
        self.layout, self.tables, self.backend = layout, tables, backend
        self._request = _FieldTokens(layout, ("user", "context"), tables)
        self._own = _FieldTokens(layout, ("candidate",), tables)
        self._extra = [
            (tables.dense.get(f"position.{b.name}"), tables.dense.get(f"gap.{b.name}")) for b in layout.behaviours
        ]

    def logits(self, requests: Sequence[EncodedRequest]) -> list[NDArray[np.float32]]:
        """(N, T) of each request, N its own number of candidates."""
        if len(requests) == 1:
            return [self._one(requests[0])]
        return self._together(requests)

    def inputs(self, requests: Sequence[EncodedRequest], candidates: slice = slice(None)) -> GraphInputs:
        """What the graph reads of requests, filled up to the longest."""
        items = [request.items[candidates] for request in requests]
        num = max(len(each) for each in items)
        rows = np.zeros((len(requests), num), dtype=np.int64)
        for index, each in enumerate(items):
            rows[index, : len(each)] = each
        fields = self.tables.tokens.take(rows)
        own = np.zeros((len(requests), num, self._own.num_tokens, fields.shape[3]), np.float32)
        if self._own.num_tokens:
            for index, request in enumerate(requests):
                ids = request.candidate.ids[candidates]
                own[index, : len(ids)] = self._own.tokens(ids, request.candidate.dense[candidates])
            fields[:, :, -self._own.num_tokens :] = own
        events, present = self._events(requests)
        of_item = [table.take(rows) for table in self.tables.items.values()]
        if self.tables.reads_targets:
            of_item.append(self._targets(rows))
        ids = np.stack([np.concatenate([r.user.ids, r.context.ids]) for r in requests])
        dense = np.stack([np.concatenate([r.user.dense, r.context.dense]) for r in requests])
        return GraphInputs(self._request.tokens(ids, dense), fields, own, of_item, events, present)

    def _one(self, request: EncodedRequest) -> NDArray[np.float32]:
        num = len(request.items)
        if not num:
            return np.zeros((0, len(self.layout.tasks)), np.float32)
        parts = []
        for start in range(0, num, _CHUNK):
            parts.append(self.backend.run(self.inputs([request], slice(start, start + _CHUNK)))[0])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _together(self, requests: Sequence[EncodedRequest]) -> list[NDArray[np.float32]]:
        """Requests of few candidates in one pass with others of like numbers, the rest one by one."""
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].items))
        found: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(requests)
        at = 0
        while at < len(order):
            stop = at + 1
            while stop < len(order):
                largest = len(requests[order[stop]].items)
                if largest > _FEW or (stop + 1 - at) * largest > _TOGETHER:
                    break
                stop += 1
            chosen, at = order[at:stop], stop
            if len(chosen) == 1 or not len(requests[chosen[-1]].items):
                for index in chosen:
                    found[index] = self._one(requests[index])
                continue
            logits = self.backend.run(self.inputs([requests[index] for index in chosen]))
            for index, own in zip(chosen, logits, strict=True):
                found[index] = own[: len(requests[index].items)]
        return found

    def _events(
        self, requests: Sequence[EncodedRequest]
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        if self.tables.events is None:
            return [], []
        num_kinds, width = self.tables.events.shape[1:]
        tokens, here = [], []
        for a in range(len(self.layout.behaviours)):
            counts = np.array([len(request.histories[a]) for request in requests])
            items = np.concatenate([request.histories[a] for request in requests])
            flat = self.tables.events.take(items, vector=a if num_kinds > 1 else 0)
            position, gap = self._extra[a]
            if position is not None:
                flat = flat + position[np.concatenate([np.arange(count) for count in counts])]
            if gap is not None:
                flat = flat + gap[np.concatenate([request.gaps[a] for request in requests if request.gaps is not None])]
            longest = int(counts.max())
            is_here = np.arange(longest) < counts[:, None]
            if is_here.all():
                filled = flat.reshape(len(requests), longest, width)
            else:
                filled = np.zeros((len(requests), longest, width), np.float32)
                filled[is_here] = flat
            tokens.append(filled)
            here.append(is_here.astype(np.float32))
        return tokens, here

    def _targets(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self.tables.events is not None
        targets = self.tables.events.take(rows)
        num_behaviours = len(self.layout.behaviours)
        return targets if targets.shape[2] == num_behaviours else np.repeat(targets, num_behaviours, axis=2)


class _FieldTokens:
    """:class:`infnet.layers.tokens.FieldTokenizer` over the table as it is stored."""

    def __init__(self, layout: Layout, sides: Sequence[Side], tables: EngineTables) -> None:
        single: list[int] = []
        self._tags: list[slice] = []
        self._dense: list[tuple[slice, NDArray[np.float32], NDArray[np.float32]]] = []
        ids_before = dense_before = 0
        for side in sides:
            storage = {f.name: f.storage for f in layout.side(side)}
            for name, columns in layout.id_columns(side).items():
                place = slice(columns.start + ids_before, columns.stop + ids_before)
                if storage[name] == "id":
                    single.append(place.start)
                else:
                    self._tags.append(place)
            for name, columns in layout.dense_columns(side).items():
                place = slice(columns.start + dense_before, columns.stop + dense_before)
                self._dense.append((place, tables.dense[f"{name}.weight"], tables.dense[f"{name}.bias"]))
            ids_before += layout.id_width(side)
            dense_before += layout.dense_width(side)
        self._single = np.array(single, dtype=np.int64)
        self._all_single = not self._tags and not self._dense
        self._table, self._projection = tables.embedding, tables.dense.get("projection")
        self.num_tokens = len(single) + len(self._tags) + len(self._dense)

    def tokens(self, ids: NDArray[np.int32], dense: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embedding rows (n, w) and dense values (n, v) -> (n, num_tokens, d)."""
        if self._all_single:
            return self._rows(ids)
        parts = [self._rows(ids[:, self._single])] if len(self._single) else []
        for columns in self._tags:
            here = ids[:, columns] >= 0
            sums = (self._rows(np.maximum(ids[:, columns], 0)) * here[..., None]).sum(axis=1)
            parts.append((sums / np.maximum(here.sum(axis=1), 1)[:, None])[:, None])
        parts += [(dense[:, columns] @ weight + bias)[:, None] for columns, weight, bias in self._dense]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _rows(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        rows = self._table.take(ids, vector=0)
        return rows if self._projection is None else rows @ self._projection
