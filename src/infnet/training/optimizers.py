"""One optimiser for the embedding table and one for everything else, moved together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from infnet.models.base import RankingModel
from infnet.training.config import TrainConfig
from infnet.training.table_optimizer import TableOptimizer, touched_rows

__all__ = ["Optimizers"]


class Optimizers:
    """Everything that moves a model's parameters.

    Args:
        model: Its embedding table gets a :class:`TableOptimizer`, all other parameters one of ``torch.optim``.
        config: Algorithm, learning rates, decay and clipping.
        others: Further dense parameters with their names, such as learned task weights; they do not decay.
    """

    def __init__(
        self, model: RankingModel, config: TrainConfig, others: Iterable[tuple[str, nn.Parameter]] = ()
    ) -> None:
        table = model.embedding.weight
        self._clip_norm = config.clip_norm
        self._table_rate = config.resolved_embedding_learning_rate
        self._dense_rate = config.learning_rate
        self.table = TableOptimizer(
            table, config.optimizer, betas=config.betas, eps=config.resolved_eps, l2=config.embedding_l2
        )
        self._touched: tuple[Tensor, Tensor] | None = None
        """Of the step that :meth:`clip` has looked at, so that distinct rows are found once."""
        own = {name: p for name, p in model.named_parameters() if p is not table and p.requires_grad}
        extra = dict(others)
        self._named = own | extra
        self.dense = _dense_optimizer(list(own.values()), list(extra.values()), config)

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._touched = None
        self.table.weight.grad = None
        for parameter in self._named.values():
            parameter.grad = None

    def clip(self) -> Tensor:
        """Norm (scalar) of all dense gradients and the touched rows' together, before cutting it to ``clip_norm``."""
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        if self.table.weight.grad is not None:
            self._touched = touched_rows(self.table.weight.grad)
            gradients.append(self._touched[1])
        norm = nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            torch._foreach_mul_(gradients, (self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, factor: float = 1.0) -> None:
        """Move all parameters, every learning rate multiplied by the schedule's ``factor``."""
        for group in self.dense.param_groups:
            group["lr"] = self._dense_rate * factor
        self.dense.step()
        if self._touched is None:
            self.table.step(self._table_rate * factor)
        else:
            self.table.step_rows(*self._touched, self._table_rate * factor)
            self._touched = None

    def state_dict(self) -> dict[str, Tensor]:
        """Flat: ``table.MOMENT`` and ``dense.PARAMETER.MOMENT``; the tensors themselves, not copies."""
        state = {f"table.{name}": tensor for name, tensor in self.table.state_dict().items()}
        for name, parameter in self._named.items():
            for key, tensor in self.dense.state.get(parameter, {}).items():
                state[f"dense.{name}.{key}"] = tensor
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state of the same model and configuration."""
        self.table.load_state_dict(_below("table.", state))
        dense: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _below("dense.", state).items():
            parameter, key = name.rsplit(".", 1)
            dense.setdefault(parameter, {})[key] = tensor.clone()
        for parameter, moments in dense.items():
            self.dense.state[self._named[parameter]] = moments


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _dense_optimizer(own: list[nn.Parameter], extra: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((own, config.weight_decay), (extra, 0.0))
        if parameters
    ]
    rate, eps = config.learning_rate, config.resolved_eps
    if config.optimizer == "adagrad":
        on_cpu = all(p.device.type == "cpu" for p in own)
        return torch.optim.Adagrad(groups, lr=rate, eps=eps, fused=on_cpu)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, betas=config.betas, eps=eps, fused=True)
