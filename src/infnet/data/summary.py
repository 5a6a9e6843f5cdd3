"""Figures of a prepared dataset, read back from its arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.data.arrays import chunks
from infnet.data.layout import Layout, TaskLayout
from infnet.data.report import SplitReport
from infnet.features import UNKNOWN, Side
from infnet.schema import DatasetSpec

__all__ = ["describe_tasks", "entity_rows", "summarise_splits"]

_REQUEST_SIDES: tuple[Side, ...] = ("context", "candidate")


def _mapped(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r")


def entity_rows(split: Path, num_users: int, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a split per user (num_users,) and per item (num_items,)."""
    counts = []
    for name, num in (("user", num_users), ("item", num_items)):
        column, count = _mapped(split / f"{name}.npy"), np.zeros(num, dtype=np.int64)
        for part in chunks(len(column)):
            count += np.bincount(column[part], minlength=num)
        counts.append(count)
    return counts[0], counts[1]


def describe_tasks(spec: DatasetSpec, train: Path) -> tuple[TaskLayout, ...]:
    """The tasks with mean and standard deviation of their training labels."""
    labels = _mapped(train / "labels.npy")
    width = len(spec.tasks)
    count, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for part in chunks(len(labels)):
        count += np.isfinite(labels[part]).sum(axis=0)
        total += np.nansum(labels[part], axis=0, dtype=np.float64)
    mean = np.divide(total, count, out=np.zeros(width), where=count > 0)
    for part in chunks(len(labels)):
        squares += np.nansum((labels[part].astype(np.float64) - mean) ** 2, axis=0)
    std = np.sqrt(np.divide(squares, count, out=np.zeros(width), where=count > 0))
    return tuple(
        TaskLayout(
            name=task.name,
            kind=task.kind,
            loss=task.resolved_loss,
            weight=task.weight,
            mean=float(mean[i]),
            std=float(std[i]) if task.kind == "regression" and std[i] > 0 else 1.0,
        )
        for i, task in enumerate(spec.tasks)
    )


def summarise_splits(
    out: Path, layout: Layout, splits: list[str], num_users: int, num_items: int
) -> dict[str, SplitReport]:
    """One report per split."""
    starts = {b.name: _mapped(out / "history" / f"{b.name}.starts.npy") for b in layout.behaviours}
    reports = {}
    for split in splits:
        users, items = entity_rows(out / split, num_users, num_items)
        labels, rows = _mapped(out / split / "labels.npy"), int(users.sum())
        labelled = np.zeros(len(layout.tasks), dtype=np.int64)
        positives = np.zeros(len(layout.tasks), dtype=np.int64)
        for part in chunks(rows):
            labelled += np.isfinite(labels[part]).sum(axis=0)
            positives += (labels[part] == 1).sum(axis=0)
        user, ends = _mapped(out / split / "user.npy"), _mapped(out / split / "ends.npy") if starts else None
        visible, empty = dict.fromkeys(starts, 0), dict.fromkeys(starts, 0)
        for part in chunks(rows):
            for column, behaviour in enumerate(layout.behaviours):
                if ends is not None:
                    begins = starts[behaviour.name][user[part]]
                    seen = np.minimum(ends[part, column] - begins, behaviour.length)
                    visible[behaviour.name] += int(seen.sum())
                    empty[behaviour.name] += int((seen == 0).sum())
        shares: dict[str, float] = {}
        shares |= _unknown_shares(out / "users" / "ids.npy", layout, "user", users)
        shares |= _unknown_shares(out / "items" / "ids.npy", layout, "item", items)
        for request_side in _REQUEST_SIDES:
            path = out / split / f"{request_side}.npy"
            shares |= _unknown_shares(path, layout, request_side, np.ones(rows, dtype=np.int64))
        reports[split] = SplitReport(
            rows=rows,
            users=int((users > 0).sum()),
            labelled={t.name: int(n) for t, n in zip(layout.tasks, labelled, strict=True)},
            positives={t.name: int(n) for t, n in zip(layout.tasks, positives, strict=True) if t.kind == "binary"},
            unknown_share=shares,
            history_mean={name: round(count / rows, 4) for name, count in visible.items()},
            history_empty={name: round(count / rows, 4) for name, count in empty.items()},
        )
    return reports


def _unknown_shares(path: Path, layout: Layout, side: Side, weights: NDArray[np.int64]) -> dict[str, float]:
    columns = layout.id_columns(side)
    if not columns:
        return {}
    ids, first = _mapped(path), {v.name: v.first for v in layout.vocabularies}
    vocabulary = {f.name: f.vocabulary for f in layout.fields}
    seen = np.flatnonzero(weights)
    unknown = dict.fromkeys(columns, 0)
    for part in chunks(len(seen)):
        block, rows = ids[seen[part]], weights[seen[part]]
        for name, place in columns.items():
            row = first[vocabulary[name] or ""] + UNKNOWN
            unknown[name] += int(rows[(block[:, place] == row).any(axis=1)].sum())
    return {name: round(count / int(weights.sum()), 4) for name, count in unknown.items()}
