"""The proxy gated unit: a row's proxies decide how much of each channel its tokens keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infnet.layers.mlp import MLP

__all__ = ["ProxyGate", "apply_gate", "repeated"]


class ProxyGate(nn.Module):
    """sigmoid(MLP(flatten(X~))), the gate of PGU (INFNet eq. 10): proxies (R, a, p, d) -> (R, a, 1, d').

    d' is the width of the tokens it gates.
    """

    def __init__(self, num_proxies: int, width: int, hidden: Sequence[int], token_width: int) -> None:
        super().__init__()
        self.mlp = MLP(num_proxies * width, hidden, token_width)

    def forward(self, proxies: Tensor) -> Tensor:
        """One gate vector for all tokens of a row."""
        gate: Tensor = self.mlp(proxies.flatten(2)).sigmoid()
        return gate[:, :, None]


def apply_gate(tokens: Tensor, gate: Tensor) -> Tensor:
    """Every token (R, a, q, d) times the gate of its row (R, a', 1, d)."""
    if not torch.compiler.is_exporting():
        return tokens * gate
    # Runtimes multiply equal shapes several times faster than they broadcast over short rows.
    gates = repeated(gate.squeeze(2), tokens.shape[2])
    return (tokens.flatten(2) * gates).unflatten(2, tokens.shape[2:])


def repeated(vectors: Tensor, times: int) -> Tensor:
    """(..., d) -> (..., times * d), as a product, which runtimes are better at than at copying short rows."""
    return vectors @ torch.eye(vectors.shape[-1]).repeat(1, times)
