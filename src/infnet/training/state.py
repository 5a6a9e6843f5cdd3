"""TrainState: all that changes while a run goes on, and how it is saved and taken up again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from infnet.data.layout import Layout
from infnet.errors import ArtifactError
from infnet.models.base import RankingModel, build_model
from infnet.training.checkpoint import Checkpoint, load_checkpoint, load_parameters, save_checkpoint
from infnet.training.config import TrainConfig
from infnet.training.objectives import Objective
from infnet.training.optimizers import Optimizers

__all__ = ["Position", "TrainState"]


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches done of the next one."""
    step: int = 0
    """Updates in all."""
    rows: int = 0
    """Rows read in all."""
    train_s: float = 0.0
    """Seconds spent on them, evaluations and checkpoints not counted."""
    stale: int = 0
    """Evaluations since the best one."""
    best: float | None = None
    """Best value of the monitored metric."""
    best_step: int = 0
    best_epoch: float = 0.0
    best_metrics: dict[str, float] = field(default_factory=dict)


class TrainState:
    """Model, optimisers, task weights, position and sums for the log; random numbers are PyTorch's own.

    Attributes:
        sums: (2, T + 1): since the last line of the log, the sum of each task's losses, and of the total; how many.
    """

    def __init__(self, model: RankingModel, optimizers: Optimizers, objective: Objective, device: torch.device) -> None:
        self.model, self.optimizers, self.objective = model, optimizers, objective
        self.device = device
        self.position = Position()
        self.sums = torch.zeros(2, len(objective.tasks) + 1, device=device)

    @classmethod
    def begin(cls, layout: Layout, config: TrainConfig, device: torch.device) -> TrainState:
        """A fresh model of the configured kind, with all it takes to train it.

        Raises:
            SpecError: The model or one of its settings is unknown, or a value is out of range.
        """
        model = build_model(config.model, layout, config.settings).to(device)
        objective = Objective(layout.tasks, config).to(device)
        learned = ((f"objective.{name}", parameter) for name, parameter in objective.named_parameters())
        return cls(model, Optimizers(model, config, learned), objective, device)

    def save(self, path: Path) -> None:
        """Write everything needed to go on with the same bits."""
        tensors: dict[str, Tensor] = {"sums": self.sums, "random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(path, tensors | self.tensors(), asdict(self.position))

    def tensors(self) -> dict[str, Tensor]:
        """Of ``model``, ``objective`` and ``optimizers``, each under its part's name; themselves, not copies."""
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }
        return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}

    def take(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take up what :meth:`tensors` gave for the same model and configuration; ``path`` is for messages.

        Raises:
            ArtifactError: It is of another model.
        """
        load_parameters(self.model, _part(checkpoint, "model."), path)
        try:
            self.objective.load_state_dict(_part(checkpoint, "objective.").tensors)
            self.optimizers.load_state_dict(_part(checkpoint, "optimizers.").tensors)
        except (KeyError, RuntimeError) as error:
            raise _misfit(path, error) from error

    def restore(self, path: Path) -> None:
        """Take up what :meth:`save` wrote for the same model and configuration.

        Raises:
            ArtifactError: The file is missing, damaged, or of another model.
        """
        checkpoint = load_checkpoint(path)
        self.take(checkpoint, path)
        try:
            self.sums.copy_(checkpoint.tensors["sums"])
            self.position = Position(**{f.name: checkpoint.state[f.name] for f in fields(Position)})
            torch.set_rng_state(checkpoint.tensors["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in checkpoint.tensors:
                torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"], self.device)
        except (KeyError, RuntimeError) as error:
            raise _misfit(path, error) from error


def _misfit(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: does not fit this run ({error}); use the version that wrote it, or train again")


def _part(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    found = {name.removeprefix(prefix): t for name, t in checkpoint.tensors.items() if name.startswith(prefix)}
    return Checkpoint(found, checkpoint.state)
