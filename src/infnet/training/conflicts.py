"""How much the tasks' gradients point against each other, pair by pair."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np

from infnet.data.dataset import Dataset
from infnet.errors import SpecError
from infnet.training.environment import find_device, training_environment
from infnet.training.gradients import TaskGradients
from infnet.training.journal import without_nan
from infnet.training.objectives import task_losses
from infnet.training.run import Run

__all__ = ["ConflictReport", "TaskPair", "task_conflicts"]


@dataclass(frozen=True)
class TaskPair:
    """Two tasks, over the batches with labels of both; NaN if there is none."""

    first: str
    second: str
    cosine: float
    """Mean cosine between their gradients."""
    opposed: float
    """Share of batches in which it is negative."""
    norm_ratio: float
    """How much longer the first one's gradient is: geometric mean."""


@dataclass(frozen=True)
class ConflictReport:
    """All pairs of tasks."""

    batches: int
    pairs: tuple[TaskPair, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain mappings and lists, None where undefined."""
        return {"batches": self.batches, "pairs": [without_nan(asdict(pair)) for pair in self.pairs]}


def task_conflicts(run: Run, dataset: Dataset, batches: int = 20) -> ConflictReport:
    """Compare the tasks' gradients on the parameters they share, at a run's best checkpoint.

    Losses are those of the tasks as they are, unweighted; the model is in evaluation mode, so that dropout adds no
    noise. Yu et al. (NeurIPS 2020) call a negative cosine a conflict.

    Args:
        run: The run.
        dataset: The one it was trained on.
        batches: How many of the split ``train`` to look at, of the run's size and in its order.

    Raises:
        ArtifactError: The run is damaged, has no checkpoint yet, or was trained on another dataset.
        SpecError: There is one task only, or no batch is asked for.
    """
    names = run.layout.task_names
    if len(names) < 2:
        raise SpecError(f"{run.path}: was trained for '{names[0]}' alone; conflicts are between two tasks or more")
    if batches < 1:
        raise SpecError(f"--batches: wanted at least 1, found {batches}")
    run.check_dataset(dataset)
    config = run.config.model_copy(update={"device": "cpu"})
    model = run.load_model()
    grams = []
    with training_environment(config, find_device(config)):
        order = dataset.batches(
            "train", config.batch_size, seed=config.seed, sessions=config.sessions, gaps=model.layout.has_gaps
        )
        for batch in islice(order, batches):
            assert batch.labels is not None
            losses, _ = task_losses(model(batch), batch.labels, batch.present, run.layout.tasks)
            grams.append(TaskGradients(losses.unbind(), model).gram())
    pairs = combinations(range(len(names)), 2)
    return ConflictReport(len(grams), tuple(_pair(np.stack(grams), i, j, names) for i, j in pairs))


def _pair(grams: np.ndarray, i: int, j: int, names: tuple[str, ...]) -> TaskPair:
    grams = grams[(grams[:, i, i] > 0) & (grams[:, j, j] > 0)]
    if not len(grams):
        return TaskPair(names[i], names[j], math.nan, math.nan, math.nan)
    squares_i, squares_j, products = grams[:, i, i], grams[:, j, j], grams[:, i, j]
    return TaskPair(
        names[i],
        names[j],
        cosine=float(np.mean(products / np.sqrt(squares_i * squares_j))),
        opposed=float(np.mean(products < 0)),
        norm_ratio=float(np.exp(0.5 * np.mean(np.log(squares_i / squares_j)))),
    )
