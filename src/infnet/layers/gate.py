"""The proxy gated unit: a row's proxies decide how much of each channel its tokens keep."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from infnet.layers.mlp import MLP

__all__ = ["ProxyGate"]


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
