"""Cross networks: explicit polynomial interactions of all inputs, one degree more with every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from infnet.layers.inputs import InputLinear, Inputs, InputTokens
from infnet.layers.mlp import HiddenLayers

__all__ = ["CrossAndDeep", "CrossNetwork", "GatedCrossNetwork", "MixtureCrossNetwork", "cross_width"]


class CrossNetwork(nn.Module):
    """Full-matrix cross layers x_(l+1) = x_0 * (W_l x_l + b_l) + x_l: (..., width) -> (..., width).

    R. Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
    Systems", WWW 2021, arXiv 2008.13535, eq. 1.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """x_0 -> x_L."""
        out = inputs
        for layer in self.layers:
            out = out + inputs * layer(out)
        return out


class MixtureCrossNetwork(nn.Module):
    """Cross layers of low rank, mixed by a gate: (..., width) -> (..., width).

    x_(l+1) = sum_k G_k(x_l) E_k(x_l) + x_l with experts E_k(x) = x_0 * (U_k tanh(C_k tanh(V_k^t x)) + b) of rank r and
    gates G = softmax(W_G x), own weights for every layer but one b for its experts (Wang et al., arXiv 2008.13535,
    eqs. 3 and 4).
    """

    def __init__(self, width: int, num_layers: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MixtureLayer(width, rank, num_experts) for _ in range(num_layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """x_0 -> x_L."""
        out = inputs
        for layer in self.layers:
            out = out + inputs * layer(out)
        return out


class _MixtureLayer(nn.Module):
    """What multiplies x_0: (..., width) -> (..., width)."""

    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.shape = (num_experts, rank)
        bound = 1 / math.sqrt(rank)
        self.down = nn.Linear(width, num_experts * rank + num_experts, bias=False)
        """Every V_k^t, then W_G."""
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank).uniform_(-bound, bound))
        """Every C_k, transposed."""
        self.up = nn.Linear(num_experts * rank, width)
        """Every U_k side by side; b."""
        nn.init.zeros_(self.up.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        num_experts, rank = self.shape
        low, gates = self.down(inputs).split([num_experts * rank, num_experts], dim=-1)
        experts = torch.einsum("...kr,krs->...ks", low.unflatten(-1, self.shape).tanh(), self.core).tanh()
        # The gates sum to one, so b counts once, and one product with all U_k adds the experts up.
        mixed = (experts * gates.softmax(dim=-1)[..., None]).flatten(-2)
        out: Tensor = self.up(mixed)
        return out


class GatedCrossNetwork(nn.Module):
    """Cross layers behind a gate, c_(l+1) = c_0 * (W_c c_l + b) * sigmoid(W_g c_l) + c_l: (..., width) -> (..., width).

    F. Wang et al., "Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction", CIKM 2023,
    arXiv 2311.04635.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(num_layers))
        """W_c above W_g."""
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(num_layers))

    def forward(self, inputs: Tensor) -> Tensor:
        """c_0 -> c_L."""
        out = inputs
        for layer, bias in zip(self.layers, self.biases, strict=True):
            cross, gate = layer(out).chunk(2, dim=-1)
            out = out + inputs * (cross + bias) * gate.sigmoid()
        return out


def cross_width(inputs: Inputs) -> int:
    """Width of x_0: all field tokens and one pooled token per behaviour, flattened."""
    return (inputs.num_fields + inputs.num_behaviours) * inputs.width


class CrossAndDeep(nn.Module):
    """A cross network and a deep network over all field tokens and mean-pooled histories.

    Parallel: side by side over the same input; stacked: the deep network reads what the cross network gives.

    Args:
        inputs: Whose tokens they read.
        cross: (..., W) -> (..., W) where W is :func:`cross_width`.
        hidden: Layers of the deep network.
        structure: How the two are put together.
        dropout: On the deep network's layers.
    """

    def __init__(
        self,
        inputs: Inputs,
        cross: nn.Module,
        hidden: Sequence[int],
        structure: Literal["parallel", "stacked"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.cross = cross
        pooled_width = inputs.num_behaviours * inputs.width
        self.first = (
            InputLinear(inputs, hidden[0], request_width=pooled_width)
            if structure == "parallel"
            else nn.Linear(cross_width(inputs), hidden[0])
        )
        self.rest = HiddenLayers(hidden, dropout)

    def forward(self, tokens: InputTokens) -> tuple[Tensor, Tensor | None]:
        """What the deep network gives (R, N, hidden[-1]) and, in parallel, the cross network beside it (R, N, W)."""
        fields, pooled = tokens.fields().flatten(2), None
        if tokens.events is not None:
            pooled = tokens.events.means().flatten(1)
            fields = torch.cat([fields, pooled[:, None].expand(-1, tokens.num_candidates, -1)], dim=2)
        crossed = self.cross(fields)
        if isinstance(self.first, InputLinear):
            return self.rest(self.first(tokens, pooled)), crossed
        return self.rest(self.first(crossed)), None
