"""Target attention: how much each past event matters to each candidate, judged pair by pair (DIN 4.3).

G. Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv 1706.06978.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TargetAttention"]


class TargetAttention(nn.Module):
    """DIN's local activation unit: an MLP over [event, target, event - target, event * target] weighs each event.

    The first layer is W_e e + W_t t + W_d (e - t) + W_p (e * t) + b. Given the target it is linear in the event,

        (W_e + W_d + W_p diag(t)) e + ((W_t - W_d) t + b),

    so each candidate makes its own matrix once and one product applies those of all candidates to the events they
    share. The joined vectors are never written out: a pair takes memory for its hidden units alone.

    Args:
        width: d.
        hidden: Hidden layers of the MLP, at least one.
        normalize: Softmax over a request's events; the paper leaves the weights as they are, so that their sum says
            how strong an interest is.
    """

    def __init__(self, width: int, hidden: Sequence[int], normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize
        self.first = nn.Linear(4 * width, hidden[0])
        self.rest = nn.Sequential(*(_PReLULinear(i, o) for i, o in pairwise([*hidden, 1])))

    def forward(self, targets: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Targets (R, N, d), tokens (R, n, d), present (R, n) bool -> weighted sums (R, N, d).

        A request with nothing present reads zeros; padding may hold anything finite.
        """
        of_event, of_target, of_difference, of_product = self.first.weight.chunk(4, dim=1)  # (h, d) each
        of_pair = targets.mT[..., None] * of_product.T[:, None]  # (R, d, N, h)
        maps = (of_event + of_difference).T[:, None] + of_pair
        biases = F.linear(targets, of_target - of_difference, self.first.bias)  # (R, N, h)
        units = torch.baddbmm(biases.flatten(1)[:, None], tokens, maps.flatten(2))  # (R, n, N * h)
        weights = self.rest(units.unflatten(2, biases.shape[1:])).squeeze(-1).mT  # (R, N, n)
        absent = ~present[:, None]
        if self.normalize:
            # A finite floor, not -inf: softmax over an empty row would be NaN.
            weights = weights.masked_fill(absent, torch.finfo(weights.dtype).min).softmax(dim=-1)
        return weights.masked_fill(absent, 0.0) @ tokens


class _PReLULinear(nn.Module):
    """PReLU with a slope per unit, then a linear layer: (..., in) -> (..., out).

    PReLU and not DIN's Dice, whose batch statistics would let the other rows of a batch change a score. It is
    s x + (1 - s) relu(x), and the slopes move into the linear layer's weights: for few outputs two thin products cost
    half of PyTorch's PReLU, whose backward pass is slow on a CPU.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((in_width,), 0.25))
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.linear.weight
        bent = F.linear(inputs.relu(), weight * (1 - self.slope), self.linear.bias)
        return F.linear(inputs, weight * self.slope) + bent
