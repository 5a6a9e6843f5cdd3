"""TaskGradients: what each task's loss asks of a model's parameters, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infnet.models.base import RankingModel
from infnet.training.table_optimizer import touched_rows

__all__ = ["TaskGradients"]


class TaskGradients:
    """The gradients of T losses of one batch, at the price of T backward passes.

    Of the embedding table these are the rows that the batch reads. Shared is what more than one loss pulls at: a
    parameter with an element at which two gradients are not zero. A tower, or a task's slice of stacked towers, is not.

    Args:
        losses: One scalar per task.
        model: Whose graph they end in.
        auxiliary: A further loss that is no task's; its gradient is in nobody's way.
    """

    def __init__(self, losses: Sequence[Tensor], model: RankingModel, auxiliary: Tensor | None = None) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._table = model.embedding.weight
        self._rows: Tensor | None = None
        self._num_tasks = len(losses)
        roots = [*losses, *([] if auxiliary is None else [auxiliary])]
        found = [
            torch.autograd.grad(root, parameters, retain_graph=position < len(roots) - 1, allow_unused=True)
            for position, root in enumerate(roots)
        ]
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        """Of each parameter that any loss reaches: (T, ..), the auxiliary loss's at the end."""
        for parameter, gradients in zip(parameters, zip(*found, strict=True), strict=True):
            values = [self._values(gradient) for gradient in gradients]
            any_value = next((value for value in values if value is not None), None)
            if any_value is not None:
                zero = torch.zeros_like(any_value)
                self._gradients.append((parameter, torch.stack([zero if v is None else v for v in values])))
        self._shared = [bool(_is_shared(stacked[: self._num_tasks])) for _, stacked in self._gradients]

    def gram(self) -> NDArray[np.float64]:
        """(T, T) inner products of the tasks' gradients on the shared parameters."""
        products = np.zeros((self._num_tasks, self._num_tasks))
        for (_, stacked), shared in zip(self._gradients, self._shared, strict=True):
            if shared:
                flat = stacked[: self._num_tasks].reshape(self._num_tasks, -1).double()
                products += (flat @ flat.mT).cpu().numpy()
        return products

    def assign(self, coefficients: NDArray[np.float64]) -> None:
        """Make sum_i coefficients_i g_i the ``grad`` of the shared parameters, and the plain sum that of the others."""
        for (parameter, stacked), shared in zip(self._gradients, self._shared, strict=True):
            factors = stacked.new_ones(len(stacked))
            if shared:
                factors[: self._num_tasks] = torch.from_numpy(coefficients)
            combined = (factors @ stacked.reshape(len(stacked), -1)).view(stacked.shape[1:])
            if parameter is self._table and self._rows is not None:
                combined = torch.sparse_coo_tensor(self._rows[None], combined, parameter.shape, check_invariants=False)
            parameter.grad = combined

    def _values(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None or not gradient.is_sparse:
            return gradient
        rows, values = touched_rows(gradient)
        self._rows = rows  # the same for all losses: each comes back through the one lookup of the batch
        return values


def _is_shared(stacked: Tensor) -> Tensor:
    return ((stacked != 0).sum(dim=0) > 1).any()
