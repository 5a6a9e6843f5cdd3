"""A prepared dataset of random values on disk, for any layout; every row carries its own number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infnet.data.dataset import Dataset
from infnet.data.layout import FORMAT_VERSION, Layout, Manifest


def write_random_dataset(
    path: Path,
    layout: Layout,
    *,
    num_rows: int = 60,
    num_users: int = 6,
    num_items: int = 9,
    max_events: int = 8,
    horizon_s: int = 10_000,
    seed: int = 0,
) -> Dataset:
    """One split, ``train``; the layout's last task has the number of the row as its label.

    Times are whole seconds, ``horizon_s`` in all; a user's history at a row is what came strictly before it. A user's
    context often stays as it was in the row before.
    """
    rng = np.random.default_rng(seed)

    def write(name: str, array: np.ndarray) -> None:
        if 0 not in array.shape:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(path / name, array)

    def ids(num: int, side: str) -> np.ndarray:
        values = rng.integers(1, layout.num_rows, (num, layout.id_width(side)), dtype=np.int32)
        for field in layout.side(side):
            if field.storage == "ids":
                columns = layout.id_columns(side)[field.name]
                count = rng.integers(0, field.width + 1, (num, 1))
                values[:, columns] = np.where(np.arange(field.width) < count, values[:, columns], -1)
        return values

    def dense(num: int, side: str) -> np.ndarray:
        return rng.normal(size=(num, layout.dense_width(side))).astype(np.float32)

    for name, side, num in (("users", "user", num_users), ("items", "item", num_items)):
        write(f"{name}/ids.npy", ids(num, side))
        write(f"{name}/dense.npy", dense(num, side))

    user = np.sort(rng.integers(0, num_users, num_rows)).astype(np.int32)
    time = rng.integers(0, horizon_s, num_rows).astype(np.int64)
    time = time[np.lexsort((time, user))] * 1000
    ends = np.zeros((num_rows, len(layout.behaviours)), dtype=np.int64)
    for column, behaviour in enumerate(layout.behaviours):
        counts = rng.integers(0, max_events + 1, num_users)
        starts = np.concatenate([[0], counts.cumsum()])
        times = [np.sort(rng.integers(-horizon_s // 2, horizon_s, n)) * 1000 for n in counts]
        write(f"history/{behaviour.name}.starts.npy", starts.astype(np.int64))
        write(f"history/{behaviour.name}.items.npy", rng.integers(0, num_items, starts[-1], dtype=np.int32))
        write(f"history/{behaviour.name}.times.npy", np.concatenate([[0], *times])[1:].astype(np.int64))
        ends[:, column] = [starts[u] + (times[u] < t).sum() for u, t in zip(user, time, strict=True)]

    context, context_dense = ids(num_rows, "context"), dense(num_rows, "context")
    for values in (context, context_dense):
        for row in np.flatnonzero(rng.random(num_rows) < 0.8):
            values[row] = values[max(row - 1, 0)]
    labels = rng.integers(0, 2, (num_rows, len(layout.tasks))).astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    labels[:, -1] = np.arange(num_rows)
    write("train/user.npy", user)
    write("train/item.npy", rng.integers(0, num_items, num_rows, dtype=np.int32))
    write("train/time.npy", time)
    write("train/labels.npy", labels)
    write("train/ends.npy", ends)
    write("train/context.npy", context)
    write("train/context_dense.npy", context_dense)
    write("train/candidate.npy", ids(num_rows, "candidate"))
    write("train/candidate_dense.npy", dense(num_rows, "candidate"))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        package_version="0",
        name="random",
        layout=layout,
        num_users=num_users,
        num_items=num_items,
        splits={"train": num_rows},
        fingerprint="a" * 64,
    )
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return Dataset.open(path)
