"""A raw log whose prepared dataset has any number of fields and full histories, for timings through the whole path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from infnet.api import prepare
from infnet.data.dataset import Dataset
from infnet.schema import DatasetSpec

__all__ = ["prepare_sized"]

_TASKS = ("click", "like", "follow", "share")
_DAY_MS = 86_400_000
_VALUES = 50
"""Of every category."""


def prepare_sized(
    out: Path,
    num_fields: int,
    seq_len: int,
    *,
    num_users: int = 300,
    num_items: int = 20_000,
    page: int = 1,
    seed: int = 0,
) -> Dataset:
    """A dataset of ``num_fields`` fields (a third of the user, the tab, the item's age, the rest of the item), three
    behaviours that together hold ``seq_len`` events, full at the end, and four binary tasks. Users see ``page`` items
    at a time."""
    rng = np.random.default_rng(seed)
    raw = out.with_name(f"{out.name}-raw")
    raw.mkdir(parents=True)
    num_user = num_fields // 3
    num_item = num_fields - num_user - 2
    lengths = (seq_len // 3, seq_len // 3, seq_len - 2 * (seq_len // 3))
    pages = -(-(max(lengths) + 20) // page)
    rows = num_users * pages * page

    def categories(num_rows: int, prefix: str, count: int) -> dict[str, np.ndarray]:
        return {f"{prefix}{i}": rng.integers(0, _VALUES, num_rows) for i in range(count)}

    pl.DataFrame({"user_id": np.arange(num_users)} | categories(num_users, "u", num_user - 1)).write_parquet(
        raw / "users.parquet"
    )
    born = 1_700_000_000_000 - rng.integers(0, 300, num_items) * _DAY_MS
    pl.DataFrame(
        {"item_id": np.arange(num_items), "born": born} | categories(num_items, "i", num_item - 1)
    ).write_parquet(raw / "items.parquet")
    labels = {task: (rng.random(rows) < 0.3).astype(np.int8) for task in _TASKS}
    pl.DataFrame(
        {
            "user_id": np.tile(np.repeat(np.arange(num_users), page), pages),
            "item_id": rng.integers(0, num_items, rows),
            "time_ms": 1_700_000_000_000 + np.arange(rows) // page * 1_000_000,
            "tab": np.repeat(rng.integers(0, 5, rows // page), page),
        }
        | labels
    ).write_parquet(raw / "log.parquet")
    features = [
        {"kind": "id", "name": "user_id", "side": "user"},
        *({"kind": "category", "name": f"u{i}", "side": "user"} for i in range(num_user - 1)),
        {"kind": "category", "name": "tab", "side": "context"},
        {"kind": "id", "name": "item_id", "side": "item"},
        *({"kind": "category", "name": f"i{i}", "side": "item"} for i in range(num_item - 1)),
        {"kind": "age", "name": "age", "column": "born"},
    ]
    spec = DatasetSpec.model_validate(
        {
            "name": f"{num_fields} fields, {seq_len} events",
            "log": {"files": ["log.parquet"], "user": "user_id", "item": "item_id", "time": "time_ms"},
            "user": {"key": "user_id", "parts": [["users.parquet"]]},
            "item": {"key": "item_id", "parts": [["items.parquet"]]},
            "features": features,
            "behaviours": [
                {"name": f"b{i}", "filter": "tab >= 0", "length": length, "fields": ["item_id", "i0", "i1"]}
                for i, length in enumerate(lengths)
            ],
            "tasks": [{"name": task, "label": task} for task in _TASKS],
            "split": {"fractions": [0.02, 0.02]},
        }
        | {"name": f"sized-{num_fields}-{seq_len}"}
    )
    prepare(spec, raw, out)
    return Dataset.open(out)
