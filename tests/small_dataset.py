"""A small prepared dataset on disk, from which there is something to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infnet.data.dataset import Dataset
from infnet.data.layout import FORMAT_VERSION, Manifest
from random_batches import make_layout

NUM_USERS, NUM_ITEMS = 15, 30


def write_dataset(
    path: Path, num_rows: dict[str, int] | None = None, seed: int = 0, fingerprint: str = "a" * 64
) -> Dataset:
    """A prepared dataset in the manifest's files, whose labels depend on the item and its first field."""
    rng = np.random.default_rng(seed)
    layout = make_layout(tasks=3, regression=True, vocabulary=60)
    num_rows = num_rows or {"train": 600, "valid": 300}

    def write(name, array):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / name, array)

    def ids(num, side):
        return rng.integers(1, layout.num_rows, (num, layout.id_width(side)), dtype=np.int32)

    item_ids = ids(NUM_ITEMS, "item")
    write("users/ids.npy", ids(NUM_USERS, "user"))
    write("items/ids.npy", item_ids)
    for behaviour in layout.behaviours:
        write(f"history/{behaviour.name}.starts.npy", np.arange(NUM_USERS + 1, dtype=np.int64) * 4)
        write(f"history/{behaviour.name}.items.npy", rng.integers(1, NUM_ITEMS, NUM_USERS * 4, dtype=np.int32))
        write(f"history/{behaviour.name}.times.npy", np.tile(np.arange(4), NUM_USERS).astype(np.int64))
    for split, num in num_rows.items():
        users = np.sort(rng.integers(1, NUM_USERS, num)).astype(np.int32)
        items = rng.integers(1, NUM_ITEMS, num, dtype=np.int32)
        odds = 3.0 * np.stack([np.cos(items), np.sin(item_ids[items, 0])], axis=1)
        clicks = rng.random((num, 2)) < 1 / (1 + np.exp(-odds))
        watched = 3.0 + 2.0 * np.cos(items) + rng.normal(size=num)
        labels = np.concatenate([clicks, watched[:, None]], axis=1).astype(np.float32)
        labels[::7, 1] = np.nan
        write(f"{split}/user.npy", users)
        write(f"{split}/item.npy", items)
        write(f"{split}/time.npy", np.arange(num, dtype=np.int64) + 100)
        write(f"{split}/labels.npy", labels)
        write(f"{split}/ends.npy", np.repeat(users[:, None].astype(np.int64) * 4 + 4, 2, axis=1))
        write(f"{split}/context.npy", ids(num, "context"))
        write(f"{split}/candidate.npy", ids(num, "candidate"))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        package_version="0",
        name="small",
        layout=layout,
        num_users=NUM_USERS,
        num_items=NUM_ITEMS,
        splits=num_rows,
        fingerprint=fingerprint,
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return Dataset.open(path)
