"""One step of training: forward, loss, backward, clipping, update."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infnet.data.batch import RequestBatch
from infnet.errors import TrainingError
from infnet.training.config import TrainConfig
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState

__all__ = ["Stepper"]


class Stepper:
    """Moves a state on, batch by batch.

    Args:
        state: What moves.
        config: Precision and learning rate; everything else stands in the state already.
        schedule: Of the learning rates.
        best_path: Where the best checkpoint is kept, for messages.
    """

    def __init__(self, state: TrainState, config: TrainConfig, schedule: Schedule, best_path: Path) -> None:
        self.state, self.config, self.schedule = state, config, schedule
        self.best_path = best_path
        self._on_cpu = state.device.type == "cpu"

    def step(self, batch: RequestBatch) -> None:
        """Learn from one batch with labels.

        Raises:
            TrainingError: The loss or the gradient is no finite number; on a CPU before anything has moved.
        """
        state, at = self.state, self.state.position
        at.rows += int(batch.present.sum())
        if not self._on_cpu:
            batch = batch.to(state.device)
        state.optimizers.zero_grad()
        with self._autocast():
            logits = state.model(batch)
        loss = state.objective(state.model, logits, batch)
        state.objective.backward(loss, state.model)
        norm = state.optimizers.clip()
        state.sums[0, :-1] += loss.tasks.detach()
        state.sums[0, -1] += loss.total.detach() + 0.0 * norm  # not finite if either is not
        state.sums[1, :-1] += loss.observed
        state.sums[1, -1] += 1
        if self._on_cpu:
            self.check_finite()  # elsewhere, looking at every step would wait for the device
        state.optimizers.step(self.schedule.factor(at.step))
        at.batch += 1
        at.step += 1

    def check_finite(self) -> None:
        """See that all losses and gradients since the last line of the log were finite numbers.

        Raises:
            TrainingError: They were not; names the task, the place and the largest parameter.
        """
        sums, at = self.state.sums[0], self.state.position
        if math.isfinite(sums.sum().item()):
            return
        names = [task.name for task in self.state.objective.tasks]
        bad = [n for n, s in zip(names, sums.tolist(), strict=False) if not math.isfinite(s)]
        what = f"the loss of task '{bad[0]}'" if bad else "the gradient or the model's auxiliary loss"
        name, parameter = max(self.state.model.named_parameters(), key=lambda item: _norm(item[1]))
        best = f"the best checkpoint so far is {self.best_path}" if at.best is not None else "nothing was saved"
        raise TrainingError(
            f"{what} is no finite number at epoch {at.epoch + 1}, batch {at.batch + 1} (learning rate "
            f"{self.config.learning_rate * self.schedule.factor(at.step):.3g}, largest parameter {name} with norm "
            f"{_norm(parameter):.3g}); lower train.learning_rate or set train.clip_norm=1; {best}"
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.state.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _norm(parameter: Tensor) -> float:
    """NaN counts as larger than anything."""
    norm = parameter.detach().float().norm().item()
    return math.inf if math.isnan(norm) else norm
