"""Updates of the embedding table that touch only the rows a batch has read."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["OptimizerKind", "TableOptimizer", "touched_rows"]

OptimizerKind = Literal["adam", "adamw", "adagrad"]


def touched_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (U,) and gradients (U, width) of a sparse gradient, each row once.

    A table read once per batch has such a gradient already and its own storage is returned; the gradients of a row
    that stands there several times are added up.
    """
    if not gradient.is_coalesced():
        rows = gradient._indices()[0]
        if rows.device.type != "cpu" or _repeats(rows):
            gradient = gradient.coalesce()
    return gradient._indices()[0], gradient._values()


def _repeats(rows: Tensor) -> bool:
    ordered = np.sort(rows.numpy())  # several times faster than torch's sort, which is stable
    return bool((ordered[1:] == ordered[:-1]).any())


class TableOptimizer:
    """Lazy Adam, AdamW or Adagrad: a row and its moments change only when a batch reads that row.

    A step costs what the batch touches, whatever the size of the table (`benchmarks/embedding_step.py`). Where every
    row is touched it is the dense algorithm; where not, it is that of ``torch.optim.SparseAdam``: moments of a row
    stand still between visits, and bias correction counts all steps.

    Args:
        weight: The table (V, width), whose ``grad`` is sparse.
        kind: The algorithm.
        betas, eps: As in ``torch.optim``.
        l2: Strength of the L2 penalty on the rows touched: added to their gradient, or, in AdamW, decoupled from it
            (rows shrink by ``learning_rate * l2``).
    """

    def __init__(
        self,
        weight: nn.Parameter,
        kind: OptimizerKind = "adam",
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l2: float = 0.0,
    ) -> None:
        self.weight, self.kind = weight, kind
        self.betas, self.eps, self.l2 = betas, eps, l2
        self.step_count = 0
        names = ("squares",) if kind == "adagrad" else ("mean", "square")
        self.moments = {name: _zeros_like(weight) for name in names}

    def step(self, learning_rate: float) -> None:
        """Apply ``weight.grad``; without one nothing moves."""
        if self.weight.grad is not None:
            self.step_rows(*touched_rows(self.weight.grad), learning_rate)

    @torch.no_grad()
    def step_rows(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Apply the gradients (U, width) of distinct rows (U,); ``gradient`` is used as scratch space."""
        self.step_count += 1
        weight = self.weight.index_select(0, rows)
        if self.l2 and self.kind == "adamw":
            weight.mul_(1.0 - learning_rate * self.l2)
        elif self.l2:
            gradient.add_(weight, alpha=self.l2)
        if self.kind == "adagrad":
            self._adagrad(rows, weight, gradient, learning_rate)
        else:
            self._adam(rows, weight, gradient, learning_rate)
        self.weight.index_copy_(0, rows, weight)

    def _adam(self, rows: Tensor, weight: Tensor, gradient: Tensor, learning_rate: float) -> None:
        beta1, beta2 = self.betas
        mean = self.moments["mean"].index_select(0, rows).lerp_(gradient, 1.0 - beta1)
        self.moments["mean"].index_copy_(0, rows, mean)
        square = self.moments["square"].index_select(0, rows).mul_(beta2)
        square.addcmul_(gradient, gradient, value=1.0 - beta2)
        self.moments["square"].index_copy_(0, rows, square)
        # The two bias corrections (Kingma & Ba 2015, algorithm 1) are folded into the step size and eps.
        root = math.sqrt(1.0 - beta2**self.step_count)
        size = learning_rate * root / (1.0 - beta1**self.step_count)
        weight.addcdiv_(mean, square.sqrt_().add_(self.eps * root), value=-size)

    def _adagrad(self, rows: Tensor, weight: Tensor, gradient: Tensor, learning_rate: float) -> None:
        squares = self.moments["squares"].index_select(0, rows).addcmul_(gradient, gradient)
        self.moments["squares"].index_copy_(0, rows, squares)
        weight.addcdiv_(gradient, squares.sqrt_().add_(self.eps), value=-learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by name, and ``step``; the tensors themselves, not copies."""
        return {**self.moments, "step": torch.tensor(self.step_count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state of the same table and kind."""
        for name, moment in self.moments.items():
            moment.copy_(state[name])
        self.step_count = int(state["step"])


def _zeros_like(weight: Tensor) -> Tensor:
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        # calloc: a page of a large table is mapped when one of its rows is first touched.
        return torch.from_numpy(np.zeros(weight.shape, dtype=np.float32))
    return torch.zeros_like(weight, requires_grad=False)
