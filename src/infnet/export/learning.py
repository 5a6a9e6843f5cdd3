"""What a bundle carries along so that training can go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray
from torch import Tensor

from infnet.data.dataset import Dataset
from infnet.data.layout import Layout
from infnet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from infnet.training.config import TrainConfig
from infnet.training.run import Run

__all__ = ["LEARNING_FILES", "WAITING_SCHEMA", "LearningState", "item_counts", "last_seen", "prior_scores"]

LEARNING_FILES = ("checkpoint.safetensors", "train.yaml", "seen.npy", "items/counts.npy", "waiting.parquet")
WAITING_SCHEMA = {"vocabulary": pl.String, "value": pl.String, "count": pl.Int64, "seen_ms": pl.Int64}

_PRIOR_ROWS = 20
"""Rows of the average item that an item's own are mixed with."""


@dataclass(frozen=True)
class LearningState:
    """Parameters, optimisers and what the embedding rows were last used for."""

    config: TrainConfig
    """Of the run."""
    tensors: Mapping[str, Tensor]
    """As :meth:`infnet.training.state.TrainState.tensors` names them."""
    seen: NDArray[np.int64]
    """(num_rows,) when training data last named what each embedding row stands for, ms since 1970; 0 for never."""
    waiting: pl.DataFrame
    """Values seen after the run, too rarely yet for a row of their own: columns of :data:`WAITING_SCHEMA`."""

    @classmethod
    def of_run(cls, run: Run, dataset: Dataset) -> LearningState:
        """The best checkpoint's parameters, with the optimisers as they were at the run's end.

        Raises:
            ArtifactError: A checkpoint is missing or damaged.
        """
        best, last = load_checkpoint(run.best_path), load_checkpoint(run.last_path)
        tensors = {f"model.{name}": tensor for name, tensor in best.tensors.items()}
        tensors |= {name: t for name, t in last.tensors.items() if name.startswith(("objective.", "optimizers."))}
        return cls(run.config, tensors, last_seen(dataset), pl.DataFrame(schema=WAITING_SCHEMA))

    def write(self, directory: Path) -> None:
        """Write its files into a bundle."""
        save_checkpoint(directory / "checkpoint.safetensors", self.tensors, {})
        text = yaml.safe_dump(self.config.document(), sort_keys=False)
        (directory / "train.yaml").write_text(text, encoding="utf-8")
        np.save(directory / "seen.npy", self.seen)
        self.waiting.write_parquet(directory / "waiting.parquet", statistics=False)

    def checkpoint(self) -> Checkpoint:
        """The tensors, as a training state takes them up."""
        return Checkpoint(dict(self.tensors), {})


def last_seen(dataset: Dataset) -> NDArray[np.int64]:
    """When training rows, or the past events they saw, last named what each embedding row stands for (num_rows,)."""
    rows, layout = dataset.rows("train"), dataset.layout
    seen = np.zeros(layout.num_rows, dtype=np.int64)
    last = int(rows.time.max(initial=0))

    def note(ids: NDArray[np.int32], times: NDArray[np.int64]) -> None:
        for column in ids.T:
            here = (column >= 0) & (times > 0)
            np.maximum.at(seen, column[here], times[here])

    users = np.zeros(dataset.manifest.num_users, dtype=np.int64)
    items = np.zeros(dataset.manifest.num_items, dtype=np.int64)
    np.maximum.at(users, rows.user, rows.time)
    np.maximum.at(items, rows.item, rows.time)
    for history in dataset.histories:
        past = history.times <= last
        np.maximum.at(items, history.items[past], history.times[past])
    note(dataset.users.ids, users)
    note(dataset.items.ids, items)
    note(rows.context, rows.time)
    note(rows.candidate, rows.time)
    return seen


def item_counts(dataset: Dataset, is_repeat: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Per item its impressions with a label of the first binary task, and the positive ones (num_items, 2).

    Args:
        dataset: Its training rows are counted.
        is_repeat: (n,) rows whose impression is counted elsewhere: only a positive label adds to the counts.
    """
    counts = np.zeros((dataset.manifest.num_items, 2), dtype=np.int64)
    task = _first_binary(dataset.layout)
    if task is not None:
        rows = dataset.rows("train")
        label = rows.labels[:, task]
        known, positive = ~np.isnan(label), label > 0
        first = known if is_repeat is None else known & ~is_repeat
        counts[:, 0] = np.bincount(rows.item[first], minlength=len(counts))
        counts[:, 1] = np.bincount(rows.item[known & positive], minlength=len(counts))
    return counts


def prior_scores(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each item's rate of the first binary task, drawn towards that of all (num_items,); the unknown item's is that."""
    rows, positives = counts.sum(axis=0).tolist()
    mean = positives / rows if rows else 0.0
    scores = (counts[:, 1] + _PRIOR_ROWS * mean) / (counts[:, 0] + _PRIOR_ROWS)
    scores[0] = mean
    return scores.astype(np.float32)


def _first_binary(layout: Layout) -> int | None:
    return next((index for index, task in enumerate(layout.tasks) if task.kind == "binary"), None)
