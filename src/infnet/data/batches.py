"""From row numbers to a RequestBatch: a handful of vectorised gathers from the memory maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from infnet.data.batch import FieldValues, RequestBatch

if TYPE_CHECKING:
    from infnet.data.dataset import Dataset, SplitRows

__all__ = ["NUM_GAP_BUCKETS", "BatchBuilder", "Compactor", "gap_buckets"]

NUM_GAP_BUCKETS = 32


def gap_buckets(gaps_ms: NDArray[np.int64]) -> NDArray[np.int32]:
    """Bucket of a time gap: floor(log2(1 + seconds)), at most 31 (68 years)."""
    exponent = np.frexp(gaps_ms.astype(np.float32) / 1000.0 + 1.0)[1] - 1
    return np.clip(exponent, 0, NUM_GAP_BUCKETS - 1).astype(np.int32)


class Compactor:
    """Lists the distinct values of an id array and says where each value stands in that list.

    Works by stamping a scratch array of ``size`` entries rather than by sorting, so that a call costs time in
    proportion to the ids alone, and clears nothing.
    """

    def __init__(self, size: int) -> None:
        self._stamps = np.zeros(size, dtype=np.int32)

    def __call__(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Ids (n,) in [0, size) -> distinct ids (u,), positions (n,) with ``distinct[positions] == ids``."""
        order = np.arange(len(ids), dtype=np.int32)
        self._stamps[ids] = order  # of equal ids the last one's stamp stays
        distinct = ids[np.flatnonzero(self._stamps[ids] == order)]
        self._stamps[distinct] = order[: len(distinct)]
        return distinct, self._stamps[ids]


class BatchBuilder:
    """Builds the batches of one split; keeps scratch arrays, so use one per thread.

    Args:
        dataset: Where the features and histories are.
        rows: Of the split.
        gaps: Fill in the time since each event of every behaviour; else of those that the dataset's spec asks for.
    """

    def __init__(self, dataset: Dataset, rows: SplitRows, *, gaps: bool = False) -> None:
        layout = dataset.layout
        self._dataset, self._rows, self._layout = dataset, rows, layout
        self._compact_items = Compactor(dataset.manifest.num_items)
        self._compact_rows = Compactor(layout.num_rows)
        self._has_tags = any(f.storage == "ids" for f in layout.fields)
        self._gaps = [gaps or b.gap for b in layout.behaviours]
        columns = layout.id_columns("item")
        self._event_columns = np.array(
            [c for name in layout.event_fields for c in range(columns[name].start, columns[name].stop)], dtype=np.int64
        )

    def build(self, rows: NDArray[np.int64]) -> RequestBatch:
        """The batch of row numbers (R, N), -1 for padding; the first row of a request is a real one."""
        split, layout = self._rows, self._layout
        present = rows >= 0
        filled = np.maximum(rows, 0) if not present.all() else rows
        first, flat = rows[:, 0], filled.ravel()
        users = split.user[first]

        items, candidate_item = self._compact_items(split.item[flat].astype(np.int64))
        event_items, history, history_present, gaps = self._history(users, first)

        item_ids = self._dataset.items.ids[items]
        event_ids = self._dataset.items.ids[event_items][:, self._event_columns]
        groups = [self._dataset.users.ids[users], split.context[first], item_ids, split.candidate[flat], event_ids]
        table_rows, positions = self._positions(groups)
        user, context, item, candidate, event = positions

        labels = split.labels[flat].reshape(*rows.shape, len(layout.tasks))
        if not present.all():
            labels[~present] = np.nan
        return RequestBatch(
            rows=torch.from_numpy(table_rows),
            user=_values(user, self._dataset.users.dense[users]),
            context=_values(context, split.context_dense[first]),
            item=_values(item, self._dataset.items.dense[items]),
            candidate=_values(candidate, split.candidate_dense[flat]),
            candidate_item=torch.from_numpy(candidate_item.reshape(rows.shape)),
            present=torch.from_numpy(present),
            event_ids=torch.from_numpy(event),
            history=torch.from_numpy(history),
            history_present=torch.from_numpy(history_present),
            history_gap=torch.from_numpy(gaps),
            labels=torch.from_numpy(labels),
            user_index=torch.from_numpy(users.astype(np.int64)),
        )

    def _history(
        self, users: NDArray[np.int32], first: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
        """Distinct event items (E,), and per request (R, L): position therein, presence, gap bucket."""
        layout = self._layout
        shape = (len(first), layout.seq_len)
        items = np.zeros(shape, dtype=np.int64)
        present = np.zeros(shape, dtype=bool)
        gaps = np.zeros(shape if any(self._gaps) else (len(first), 0), dtype=np.int32)
        ends = self._rows.ends[first]
        at = 0
        for index, (behaviour, history) in enumerate(zip(layout.behaviours, self._dataset.histories, strict=True)):
            part = slice(at, at + behaviour.length)
            at += behaviour.length
            if len(history.items) == 0:
                continue
            available = (ends[:, index] - history.starts[users]).astype(np.int32)
            recency = np.arange(behaviour.length, dtype=np.int32)
            here = np.less(recency, available[:, None], out=present[:, part])
            places = (ends[:, index] - 1)[:, None] - recency
            np.multiply(history.items.take(places, mode="clip"), here, out=items[:, part])
            if self._gaps[index]:
                elapsed = self._rows.time[first][:, None] - history.times.take(places, mode="clip")
                gaps[:, part] = gap_buckets(elapsed) * here
        distinct, positions = self._compact_items(items.ravel())
        return distinct, positions.reshape(shape), present, gaps

    def _positions(self, groups: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], list[NDArray[np.int32]]]:
        """Distinct embedding rows of all groups together, and each group's ids as positions therein (-1 stays)."""
        flat = np.concatenate([group.ravel() for group in groups], dtype=np.int64)
        if self._has_tags:
            padding = flat < 0
            rows, positions = self._compact_rows(np.where(padding, 0, flat))
            positions[padding] = -1
        else:
            rows, positions = self._compact_rows(flat)
        parts = np.split(positions, np.cumsum([group.size for group in groups])[:-1])
        return rows, [part.reshape(group.shape) for part, group in zip(parts, groups, strict=True)]


def _values(ids: NDArray[np.int32], dense: NDArray[np.float32]) -> FieldValues:
    return FieldValues(torch.from_numpy(ids), torch.from_numpy(np.ascontiguousarray(dense)))
