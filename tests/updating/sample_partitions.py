"""Partitions of samples as the label join writes them, from the raw log of the small dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from infnet.data.dataset import Dataset
from small_bundle import CONTEXT, OWN, frames, state_at

BEHAVIOURS, TASKS = ("click", "like"), ("click", "like", "watch")


def log_samples(dataset: Dataset, split: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every row of a split as a request of one item and its sample, in order of time."""
    users = ["", *pl.read_parquet(dataset.path / "users/keys.parquet")["key"]]
    items = ["", *pl.read_parquet(dataset.path / "items/keys.parquet")["key"]]
    rows, log = dataset.rows(split), {(r["user"], r["time_ms"]): r for r in frames()["log.parquet"].to_dicts()}
    found = []
    for row in range(len(rows)):
        raw, state = log[users[rows.user[row]], rows.time[row]], state_at(dataset, split, row)
        request = {
            "request_id": f"r{raw['time_ms']}",
            "user_id": raw["user"],
            "time_ms": raw["time_ms"],
            "version": "v",
            "context": json.dumps({name: raw[name] for name in CONTEXT}),
            "user": None,
        }
        for name, past, times in zip(BEHAVIOURS, state.histories, state.times, strict=True):
            request |= {f"{name}_items": [items[i] for i in past], f"{name}_times": times.tolist()}
        sample = {
            "request_id": request["request_id"],
            "item_id": str(raw["item"]),
            "user_id": raw["user"],
            "time_ms": raw["time_ms"],
            "impression_ms": raw["time_ms"] + 500,
            "values": json.dumps({name: raw[name] for name in OWN}),
            "label_click": float(raw["click"]),
            "label_like": float(raw["like"]),
            "label_watch": raw["watch_ms"] / 1000,
            "is_correction": False,
        }
        found.append((request, sample))
    return sorted(found, key=lambda pair: pair[1]["time_ms"])


def write_part(directory: Path, number: int, samples: list[tuple[dict[str, Any], dict[str, Any]]]) -> Path:
    """One partition."""
    requests = pl.DataFrame([request for request, _ in samples], schema=_REQUESTS)
    rows = pl.DataFrame([sample for _, sample in samples], schema=_ROWS)
    part = directory / f"part-{number:06d}"
    part.mkdir(parents=True)
    requests.unique("request_id", maintain_order=True).write_parquet(part / "requests.parquet")
    rows.write_parquet(part / "samples.parquet")
    return directory


_LISTS = {
    f"{b}_{what}": pl.List(kind) for b in BEHAVIOURS for what, kind in (("items", pl.String), ("times", pl.Int64))
}
_REQUESTS = {
    **{"request_id": pl.String, "user_id": pl.String, "time_ms": pl.Int64, "version": pl.String},
    **{"context": pl.String, "user": pl.String},
    **_LISTS,
}
_ROWS = {
    **{"request_id": pl.String, "item_id": pl.String, "user_id": pl.String, "time_ms": pl.Int64},
    **{"impression_ms": pl.Int64, "values": pl.String},
    **{f"label_{task}": pl.Float32 for task in TASKS},
    "is_correction": pl.Boolean,
}
