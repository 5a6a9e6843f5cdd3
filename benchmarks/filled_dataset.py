"""A prepared dataset of random ids and full histories on disk, for timings that do not depend on a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infnet.data.dataset import Dataset
from infnet.data.layout import FORMAT_VERSION, Manifest
from infnet.features import Side
from random_shapes import sized_layout

__all__ = ["write_filled_dataset"]

_FEW = 32
"""Values of every field that is no key of a user, an item or an item's author."""


def write_filled_dataset(
    path: Path,
    num_rows: int,
    *,
    num_fields: int = 60,
    seq_len: int = 150,
    num_users: int = 25_000,
    num_items: int = 20_000,
    seed: int = 0,
) -> Dataset:
    """One split, ``train``, in the files of :class:`infnet.data.layout.Manifest`.

    The first field of a user and of an item has a value of its own for each, the item's second one for every fifth.
    Every row sees as many events as each of the three behaviours holds.
    """
    rng = np.random.default_rng(seed)
    own_sizes = {"user0": num_users, "item0": num_items, "item1": num_items // 5 + 1}
    sizes = {f.name: own_sizes.get(f.name, _FEW) for f in sized_layout(num_fields, seq_len).fields}
    layout = sized_layout(num_fields, seq_len, vocabulary=sum(sizes.values()))
    firsts = dict(zip(sizes, 1 + np.cumsum([0, *sizes.values()][:-1]), strict=True))

    def write(name: str, array: np.ndarray) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(path / name, array)

    def ids(side: Side, num: int) -> np.ndarray:
        columns = [
            firsts[f.name] + (np.arange(num) if sizes[f.name] == num else rng.integers(0, sizes[f.name], num))
            for f in layout.side(side)
        ]
        return np.stack(columns, axis=1).astype(np.int32)

    write("users/ids.npy", ids("user", num_users))
    write("items/ids.npy", ids("item", num_items))
    user = np.sort(rng.integers(1, num_users, num_rows)).astype(np.int32)
    time = np.arange(num_rows, dtype=np.int64) * 1000
    ends = np.empty((num_rows, len(layout.behaviours)), dtype=np.int64)
    for column, behaviour in enumerate(layout.behaviours):
        each = 2 * behaviour.length
        write(f"history/{behaviour.name}.starts.npy", np.arange(num_users + 1, dtype=np.int64) * each)
        write(f"history/{behaviour.name}.items.npy", rng.integers(1, num_items, num_users * each, dtype=np.int32))
        write(f"history/{behaviour.name}.times.npy", np.zeros(num_users * each, dtype=np.int64))
        ends[:, column] = user * np.int64(each) + rng.integers(behaviour.length, each + 1, num_rows)
    write("train/user.npy", user)
    write("train/item.npy", rng.integers(1, num_items, num_rows, dtype=np.int32))
    write("train/time.npy", time)
    write("train/labels.npy", (rng.random((num_rows, len(layout.tasks))) < 0.3).astype(np.float32))
    write("train/ends.npy", ends)
    write("train/context.npy", ids("context", num_rows))
    write("train/candidate.npy", ids("candidate", num_rows))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        package_version="0",
        name="filled",
        layout=layout,
        num_users=num_users,
        num_items=num_items,
        splits={"train": num_rows},
        fingerprint="",
    )
    (path / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return Dataset.open(path)
