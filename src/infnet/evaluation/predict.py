"""Run a model over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch

from infnet.data.batch import RequestBatch
from infnet.errors import DataError
from infnet.evaluation.predictions import Predictions
from infnet.models import RankingModel, predictions

__all__ = ["BatchSource", "predict"]


class BatchSource(Protocol):
    """Whatever has splits of batches, such as :class:`infnet.data.dataset.Dataset`."""

    def batches(self, split: str, batch_size: int, *, gaps: bool = False) -> Iterator[RequestBatch]:
        """One pass over a split, in row order; with ``gaps``, batches tell the time since every event."""


def predict(
    model: RankingModel,
    dataset: BatchSource,
    split: str,
    batch_size: int = 4096,
    on_batch: Callable[[int], None] | None = None,
) -> Predictions:
    """Score every row of a split, in row order; the model is left in the mode it came in.

    Args:
        model: On any device; its layout names the tasks.
        dataset: Prepared by the layout the model was built for.
        split: Name of the split.
        batch_size: Rows at a time.
        on_batch: Called after each batch with the number of its rows, for a progress bar.

    Raises:
        DataError: The batches carry no labels.
    """
    tasks = model.layout.tasks
    device = next(model.parameters()).device
    labels, scores, users = [], [], []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in dataset.batches(split, batch_size, gaps=model.layout.has_gaps):
                if batch.labels is None:
                    raise DataError(f"split '{split}' has no labels; evaluation compares predictions with them")
                present = batch.present
                logits = model(batch.to(device)).cpu()
                scores.append(predictions(logits, tasks)[present].numpy())
                labels.append(batch.labels[present].numpy())
                users.append(batch.user_index[:, None].expand_as(present)[present].numpy())
                if on_batch is not None:
                    on_batch(len(users[-1]))
    finally:
        model.train(was_training)
    num_tasks = len(tasks)
    return Predictions(
        tasks=tuple(task.name for task in tasks),
        kinds=tuple(task.kind for task in tasks),
        labels=np.concatenate([np.empty((0, num_tasks), np.float32), *labels]),
        scores=np.concatenate([np.empty((0, num_tasks), np.float64), *scores]),
        users=np.concatenate([np.empty(0, np.int64), *users]),
    )
