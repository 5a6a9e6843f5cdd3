"""Multi-layer perceptrons: one, several of the same shape side by side, and one whose input comes in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from infnet.layers.dropout import Dropout

__all__ = ["MLP", "GroupedLinear", "HiddenLayers", "SplitLinear"]


class MLP(nn.Sequential):
    """Hidden layers with ReLU and dropout, then a linear layer: (..., in) -> (..., out)."""

    def __init__(self, in_width: int, hidden: Sequence[int], out_width: int, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_width, width), nn.ReLU()]
            if dropout:
                layers.append(Dropout(dropout))
            in_width = width
        super().__init__(*layers, nn.Linear(in_width, out_width))


class HiddenLayers(nn.Sequential):
    """What follows a first linear layer made elsewhere: its ReLU and dropout, and the further hidden layers.

    Inputs (..., widths[0]) -> (..., widths[-1]).
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.ReLU(), Dropout(dropout)]
        for in_width, width in pairwise(widths):
            layers += [nn.Linear(in_width, width), nn.ReLU(), Dropout(dropout)]
        super().__init__(*layers)


class GroupedLinear(nn.Module):
    """G linear layers of one shape in one product: (..., G, in) -> (..., G, out)."""

    def __init__(self, num_groups: int, in_width: int, out_width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_width)
        self.weight = nn.Parameter(torch.empty(num_groups, in_width, out_width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_groups, out_width).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., G, in) -> (..., G, out)."""
        flat = inputs.reshape(-1, *inputs.shape[-2:]).transpose(0, 1)  # (G, n, in)
        out = torch.baddbmm(self.bias[:, None], flat, self.weight)
        return out.transpose(0, 1).reshape(*inputs.shape[:-1], out.shape[-1])


class SplitLinear(nn.Module):
    """A linear layer over concatenated inputs that come apart, so that each part is multiplied once where it lives.

    A request's part is computed per request and added to every candidate's (identity B).
    """

    def __init__(self, in_widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(sum(in_widths), 1))
        self.weights = nn.ParameterList(torch.empty(out_width, w).uniform_(-bound, bound) for w in in_widths)
        self.bias = nn.Parameter(torch.empty(out_width).uniform_(-bound, bound))

    def part(self, index: int, inputs: Tensor, with_bias: bool = False) -> Tensor:
        """What part ``index``, inputs (..., in_i), adds to the output (..., out); the bias comes with one of them."""
        return nn.functional.linear(inputs, self.weights[index], self.bias if with_bias else None)
