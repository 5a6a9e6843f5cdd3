"""Layouts and batches of a given size with random ids, for timings that do not depend on a dataset."""

from __future__ import annotations

import numpy as np
import torch

from infnet.data.batch import FieldValues, RequestBatch
from infnet.data.layout import BehaviourLayout, FieldLayout, Layout, TaskLayout, Vocabulary

__all__ = ["random_batch", "sized_layout"]


def sized_layout(num_fields: int, seq_len: int, vocabulary: int = 100_000, num_tasks: int = 4) -> Layout:
    """M fields (a third of the user, the rest of the item, hour and age among them), three behaviours of L events."""
    counts = {"user": num_fields // 3, "context": 1, "candidate": 1}
    counts["item"] = num_fields - sum(counts.values())
    fields = [
        FieldLayout(name=f"{side}{i}", side=side, storage="id", vocabulary="v")
        for side in ("user", "context", "item", "candidate")
        for i in range(counts[side])
    ]
    lengths = (seq_len // 3, seq_len // 3, seq_len - 2 * (seq_len // 3))
    return Layout(
        fields=tuple(fields),
        vocabularies=(Vocabulary(name="v", first=1, size=vocabulary),),
        behaviours=tuple(
            BehaviourLayout(name=f"b{i}", length=n, fields=("item0", "item1", "item2")) for i, n in enumerate(lengths)
        ),
        tasks=tuple(TaskLayout(name=f"t{i}", kind="binary", loss="bce") for i in range(num_tasks)),
        num_rows=1 + vocabulary,
    )


def random_batch(
    layout: Layout, num_requests: int, num_candidates: int, *, num_items: int = 5000, seed: int = 0
) -> RequestBatch:
    """R requests with N candidates; full histories over ``num_items`` distinct items."""
    rng = np.random.default_rng(seed)
    R, N, L = num_requests, num_candidates, layout.seq_len
    num_rows = min(layout.num_rows, 40_000)

    def positions(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.integers(0, num_rows, shape), dtype=torch.int32)

    def values(side: str, n: int) -> FieldValues:
        return FieldValues(positions(n, layout.id_width(side)), torch.zeros(n, 0))

    num_candidate_items = min(num_items, R * N)
    return RequestBatch(
        rows=torch.tensor(rng.permutation(layout.num_rows)[:num_rows]),
        user=values("user", R),
        context=values("context", R),
        item=values("item", num_candidate_items),
        candidate=values("candidate", R * N),
        candidate_item=torch.tensor(rng.integers(0, num_candidate_items, (R, N)), dtype=torch.int32),
        present=torch.ones(R, N, dtype=torch.bool),
        event_ids=positions(num_items, len(layout.event_fields)),
        history=torch.tensor(rng.integers(0, num_items, (R, L)), dtype=torch.int32),
        history_present=torch.ones(R, L, dtype=torch.bool),
        history_gap=torch.zeros(R, 0, dtype=torch.int32),
        labels=None,
        user_index=torch.arange(R),
    )
