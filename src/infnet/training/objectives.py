"""From logits and labels to the one number that training makes small (INFNet eq. 13)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.batch import RequestBatch
from infnet.data.layout import TaskLayout
from infnet.models.base import RankingModel
from infnet.training.config import TrainConfig
from infnet.training.gradients import TaskGradients
from infnet.training.surgery import CAGrad, PCGrad, Surgery

__all__ = ["FixedWeights", "GradNormWeights", "Loss", "Objective", "UncertaintyWeights", "task_losses"]


@dataclass(frozen=True)
class Loss:
    """What a batch cost."""

    total: Tensor
    """Scalar, the auxiliary loss included."""
    tasks: Tensor
    """(T,) unweighted losses; 0 where the batch has no label."""
    observed: Tensor
    """(T,) bool: the batch has a label of this task."""
    auxiliary: Tensor | None
    """The model's own loss."""


def task_losses(
    logits: Tensor,
    labels: Tensor,
    present: Tensor,
    tasks: tuple[TaskLayout, ...],
    fake_negatives: Collection[str] = (),
) -> tuple[Tensor, Tensor]:
    """Mean loss of each task over its observed labels, (T,), and whether there are any, (T,) bool.

    Args:
        logits: (R, N, T); the standardised value, or log(1 + value), for a regression.
        labels: (R, N, T) in the label's own unit, NaN where unobserved.
        present: (R, N) bool, False for padded candidates, whose logits and labels do not matter.
        tasks: Kinds of loss, and mean and deviation of the labels.
        fake_negatives: Binary tasks of which every impression is a negative first, and a row of its own besides once it
            turns out positive. With p predicted, positives weigh 1 + p and negatives (1 - p)(1 + p), under which what
            is learnt is the rate of impressions and not that of rows (Ktena et al., RecSys 2019).
    """
    known = ~labels.isnan() & present[..., None]
    # Zeros where there is nothing to learn from: no NaN and no gradient reaches the model from there.
    logits = torch.where(known, logits.float(), 0.0)
    labels = torch.where(known, labels, 0.0)
    counts = known.sum(dim=(0, 1))
    losses = torch.stack(
        [
            _elementwise(logits[..., i], labels[..., i], task)
            * (_fake_negative_weights(logits[..., i], labels[..., i]) if task.name in fake_negatives else 1.0)
            for i, task in enumerate(tasks)
        ],
        dim=-1,
    )
    return torch.where(known, losses, 0.0).sum(dim=(0, 1)) / counts.clamp(min=1), counts > 0


def _elementwise(logits: Tensor, labels: Tensor, task: TaskLayout) -> Tensor:
    if task.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if task.loss == "log_mse":
        # Negative labels count as 0, just as predictions are never negative.
        return F.mse_loss(logits, labels.clamp(min=0.0).log1p(), reduction="none")
    standardised = (labels - task.mean) / (task.std or 1.0)
    if task.loss == "huber":
        return F.huber_loss(logits, standardised, reduction="none")
    return F.mse_loss(logits, standardised, reduction="none")


def _fake_negative_weights(logits: Tensor, labels: Tensor) -> Tensor:
    prob = logits.detach().sigmoid()
    return (1.0 + prob) * torch.where(labels > 0, 1.0, 1.0 - prob)


class FixedWeights(nn.Module):
    """sum_i lambda_i * loss_i (INFNet eq. 13)."""

    weights: Tensor

    def __init__(self, tasks: tuple[TaskLayout, ...]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([task.weight for task in tasks]), persistent=False)

    def forward(self, losses: Tensor, observed: Tensor, shared: list[nn.Parameter]) -> Tensor:
        """Losses (T,) -> scalar."""
        return (self.weights * losses).sum()

    def current(self) -> Tensor:
        """Factor (T,) on each task's loss."""
        return self.weights


class UncertaintyWeights(nn.Module):
    """Weights from each task's learned noise variance (Kendall, Gal & Cipolla, CVPR 2018, eqs. 7 and 10).

    With s = log variance: exp(-s) * loss + s / 2 for a classification, exp(-s) / 2 * loss + s / 2 for a regression,
    both times the task's lambda. Best is s = log(2 * loss) and s = log(loss).
    """

    scale: Tensor
    weights: Tensor

    def __init__(self, tasks: tuple[TaskLayout, ...]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))
        scale = [1.0 if task.kind == "binary" else 0.5 for task in tasks]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("weights", torch.tensor([task.weight for task in tasks]), persistent=False)

    def forward(self, losses: Tensor, observed: Tensor, shared: list[nn.Parameter]) -> Tensor:
        """Losses (T,), observed (T,) -> scalar; a task without labels in this batch leaves its variance alone."""
        terms = self.scale * (-self.log_variance).exp() * losses + 0.5 * self.log_variance
        return (self.weights * torch.where(observed, terms, 0.0)).sum()

    def current(self) -> Tensor:
        """Factor (T,) on each task's loss."""
        return self.weights * self.scale * (-self.log_variance.detach()).exp()


class GradNormWeights(nn.Module):
    """Weights under which all tasks pull on the shared parameters alike (GradNorm: Chen et al., ICML 2018).

    Weights start from the tasks' lambdas and keep their sum. Each step moves them against the gradient of
    sum_i |G_i - mean(G) * r_i ** alpha|, where G_i is the norm of the gradient of weight_i * loss_i with respect to
    the shared parameters and r_i how far behind the others the task is: loss_i / its first loss, over the mean of
    that. The step is taken in log weights and relative to mean(G): weights stay positive, and the unit of the loss
    does not matter.

    Norms take one more backward pass per task, most of the way through the graph, so they are looked at in every few
    steps only; weights then move as far as they would have in all these steps together.

    Args:
        tasks: With their lambdas.
        alpha: How strongly slower tasks are pulled along.
        rate: Of the weights, per step.
        every: Steps from one look at the norms to the next.
    """

    weights: Tensor
    first: Tensor
    steps: Tensor

    def __init__(self, tasks: tuple[TaskLayout, ...], alpha: float, rate: float, every: int = 1) -> None:
        super().__init__()
        self.alpha, self.rate, self.every = alpha, rate, every
        self.total = sum(task.weight for task in tasks)
        self.register_buffer("weights", torch.tensor([task.weight for task in tasks]))
        self.register_buffer("first", torch.full((len(tasks),), torch.nan))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, losses: Tensor, observed: Tensor, shared: list[nn.Parameter]) -> Tensor:
        """Losses (T,) -> scalar under the weights so far, which then move; gradients are those of ``shared``."""
        total = (self.weights.clone() * losses).sum()
        if torch.is_grad_enabled():
            self.first.copy_(torch.where(self.first.isnan() & observed, losses.detach(), self.first))
            if self.steps % self.every == 0:
                norms = torch.stack([_gradient_norm(loss, shared) for loss in losses])
                self._balance(losses.detach(), observed, norms)
            self.steps += 1
        return total

    def current(self) -> Tensor:
        """Factor (T,) on each task's loss."""
        return self.weights

    def _balance(self, losses: Tensor, observed: Tensor, norms: Tensor) -> None:
        live = observed & (self.weights > 0)
        pulls = self.weights * norms  # G_i
        behind = losses / self.first.clamp(min=1e-12)
        behind = behind / _mean(behind, live).clamp(min=1e-12)  # r_i
        mean = _mean(pulls, live).clamp(min=1e-12)
        slope = torch.sign(pulls - mean * behind**self.alpha) * pulls / mean
        moved = torch.where(live, self.weights * torch.exp(-self.rate * self.every * slope), self.weights)
        self.weights.copy_(moved * (self.total / moved.sum().clamp(min=1e-12)))


def _mean(values: Tensor, live: Tensor) -> Tensor:
    return torch.where(live, values, 0.0).sum() / live.sum().clamp(min=1)


def _gradient_norm(loss: Tensor, shared: list[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    norms = [(g.coalesce().values() if g.is_sparse else g).norm() for g in gradients if g is not None]
    return torch.stack(norms).norm() if norms else loss.new_zeros(())


class Objective(nn.Module):
    """A dataset's tasks and the way their losses, or their gradients, are added up."""

    def __init__(self, tasks: tuple[TaskLayout, ...], config: TrainConfig) -> None:
        super().__init__()
        self.tasks = tasks
        self.fake_negatives = frozenset(config.fake_negatives)
        self.weighting: FixedWeights | UncertaintyWeights | GradNormWeights = FixedWeights(tasks)
        self.surgery: Surgery | None = None
        if config.task_weighting == "uncertainty":
            self.weighting = UncertaintyWeights(tasks)
        elif config.task_weighting == "gradnorm":
            every = config.gradnorm_every
            self.weighting = GradNormWeights(tasks, config.gradnorm_alpha, config.gradnorm_rate, every)
        elif config.task_weighting == "pcgrad":
            self.surgery = PCGrad()
        elif config.task_weighting == "cagrad":
            self.surgery = CAGrad(config.cagrad_c)

    def forward(self, model: RankingModel, logits: Tensor, batch: RequestBatch) -> Loss:
        """The loss of a batch with labels, the model's own auxiliary loss included."""
        assert batch.labels is not None
        losses, observed = task_losses(logits, batch.labels, batch.present, self.tasks, self.fake_negatives)
        total = self.weighting(losses, observed, model.shared_parameters())
        auxiliary = model.auxiliary_loss()
        return Loss(total if auxiliary is None else total + auxiliary, losses, observed, auxiliary)

    def backward(self, loss: Loss, model: RankingModel) -> None:
        """Give every parameter its gradient."""
        if self.surgery is None:
            loss.total.backward()
            return
        weighted = (self.weighting.current() * loss.tasks).unbind()
        gradients = TaskGradients(weighted, model, loss.auxiliary)
        gradients.assign(self.surgery.coefficients(gradients.gram()))
