"""Random layouts and batches of any shape, for tests of what takes a RequestBatch."""

from __future__ import annotations

import numpy as np
import torch

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import BehaviourLayout, FieldLayout, Layout, TaskLayout, Vocabulary


def make_layout(
    *,
    user: int = 2,
    context: int = 1,
    item: int = 3,
    candidate: int = 1,
    tags: bool = False,
    dense: bool = False,
    rich_sides: tuple[str, ...] = ("user", "item"),
    lengths: tuple[int, ...] = (5, 3),
    gap: bool = False,
    position: bool = False,
    tasks: int = 3,
    regression: bool = False,
    vocabulary: int = 20,
) -> Layout:
    """A layout with so many id fields a side, and on request a tags and a dense field of the rich sides."""
    fields: list[FieldLayout] = []
    for side, count in (("user", user), ("context", context), ("item", item), ("candidate", candidate)):
        fields += [FieldLayout(name=f"{side}{i}", side=side, storage="id", vocabulary="v") for i in range(count)]
        if tags and side in rich_sides:
            fields.append(FieldLayout(name=f"{side}_tags", side=side, storage="ids", width=3, vocabulary="v"))
        if dense and side in rich_sides:
            fields.append(FieldLayout(name=f"{side}_dense", side=side, storage="dense", width=2))
    token_fields = ("item0", "item1") + (("item_tags",) if tags and "item" in rich_sides else ())
    return Layout(
        fields=tuple(fields),
        vocabularies=(Vocabulary(name="v", first=1, size=vocabulary),),
        behaviours=tuple(
            BehaviourLayout(name=f"b{i}", length=n, fields=token_fields, gap=gap, position=position)
            for i, n in enumerate(lengths)
        ),
        tasks=tuple(TaskLayout(name=f"t{i}", kind="binary", loss="bce") for i in range(tasks - int(regression)))
        + ((TaskLayout(name="watch", kind="regression", loss="mse", mean=3.0, std=2.0),) if regression else ()),
        num_rows=1 + vocabulary,
    )


def make_batch(
    layout: Layout, num_requests: int, num_candidates: int, seed: int = 0, *, padded: bool = False
) -> RequestBatch:
    """A batch of random ids; request 0 has no history, and with ``padded`` some candidates are padding."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(layout.num_rows)[: max(2, layout.num_rows * 3 // 4)]
    R, N, J, E = num_requests, num_candidates, max(2, num_requests * num_candidates // 2), 7

    def values(side: str, n: int) -> FieldValues:
        ids = rng.integers(0, len(rows), (n, layout.id_width(side)))
        for field in layout.side(side):
            if field.storage == "ids":
                columns = layout.id_columns(side)[field.name]
                ids[:, columns] = np.where(rng.random((n, field.width)) < 0.4, -1, ids[:, columns])
        dense = rng.normal(size=(n, layout.dense_width(side)))
        return FieldValues(torch.tensor(ids, dtype=torch.int32), torch.tensor(dense, dtype=torch.float32))

    lengths = [rng.integers(0, b.length + 1, R) for b in layout.behaviours]
    for length in lengths:
        length[0] = 0
    history_present = [np.arange(b.length) < n[:, None] for b, n in zip(layout.behaviours, lengths, strict=True)]
    columns = layout.id_columns("item")
    event_width = sum(columns[name].stop - columns[name].start for name in layout.event_fields)
    event_ids = rng.integers(0, len(rows), (E, event_width))
    if "item_tags" in layout.event_fields:
        event_ids[:, -3:] = np.where(rng.random((E, 3)) < 0.4, -1, event_ids[:, -3:])
    present = np.ones((R, N), dtype=bool)
    if padded and N > 1:
        present[:, 1:] = np.sort(rng.random((R, N - 1)) < 0.6, axis=1)[:, ::-1]
    L = layout.seq_len
    has_gap = any(b.gap for b in layout.behaviours)
    labels = (rng.random((R, N, len(layout.tasks))) < 0.4).astype(np.float32)
    labels[~present] = np.nan
    return RequestBatch(
        rows=torch.tensor(rows, dtype=torch.int64),
        user=values("user", R),
        context=values("context", R),
        item=values("item", J),
        candidate=values("candidate", R * N),
        candidate_item=torch.tensor(rng.integers(0, J, (R, N)), dtype=torch.int32),
        present=torch.tensor(present),
        event_ids=torch.tensor(event_ids, dtype=torch.int32),
        history=torch.tensor(rng.integers(0, E, (R, L)), dtype=torch.int32),
        history_present=torch.tensor(np.concatenate(history_present, axis=1) if lengths else np.zeros((R, 0), bool)),
        history_gap=torch.tensor(rng.integers(0, 32, (R, L if has_gap else 0)), dtype=torch.int32),
        labels=torch.tensor(labels),
        user_index=torch.arange(R),
    )


def as_double(batch: RequestBatch) -> RequestBatch:
    """The same batch for a model in double precision."""
    values = {
        name: FieldValues(value.ids, value.dense.double()) if isinstance(value, FieldValues) else value
        for name, value in vars(batch).items()
    }
    return RequestBatch(**values)
