"""Proxies: the few tokens that summarise a request's fields and each of its histories (INFNet eqs. 2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from infnet.layers.dropout import Dropout
from infnet.layers.events import EventSequence
from infnet.layers.gather import RowIndex
from infnet.layers.mlp import MLP, SplitLinear

__all__ = ["CategoricalProxies", "SequenceProxies"]


class CategoricalProxies(nn.Module):
    """C~ = phi_cat(flatten(C)) (eq. 2), its first layer once per request and once per distinct item (identity B)."""

    def __init__(
        self,
        num_tokens: Sequence[int],
        width: int,
        num_proxies: int,
        hidden: Sequence[int],
        skip: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = (num_proxies, width)
        out_width = num_proxies * width
        self.hidden_width = hidden[0] if hidden else 0
        self.has_skip = skip or not hidden
        first_width = self.hidden_width + (out_width if self.has_skip else 0)
        self.first = SplitLinear([n * width for n in num_tokens], first_width)
        self.rest = (
            nn.Sequential(nn.ReLU(), Dropout(dropout), MLP(hidden[0], hidden[1:], out_width, dropout))
            if hidden
            else None
        )

    def forward(self, request: Tensor, item: Tensor, own: Tensor, candidates: RowIndex) -> Tensor:
        """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)
        -> (R, N, m, d)."""
        first = self.first.part(0, request.flatten(1))[:, None] + self.first.bias
        first = first + candidates.gather(self.first.part(1, item.flatten(1)))
        if own.shape[2]:
            first = first + self.first.part(2, own.flatten(2))
        return self.finish(first).unflatten(-1, self.shape)

    def finish(self, first: Tensor) -> Tensor:
        """The first layer's output (..., hidden and skip side by side) -> (..., m * d)."""
        if self.rest is None:
            return first
        deep: Tensor = self.rest(first[..., : self.hidden_width])
        return deep + first[..., self.hidden_width :] if self.has_skip else deep


class SequenceProxies(nn.Module):
    """S~_a = sum over the present t of phi_seq(s_(a,t)) (eq. 4), phi_seq once per distinct event where it can be."""

    def __init__(self, num_behaviours: int, width: int, num_proxies: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.num_behaviours, self.num_proxies, self.width = num_behaviours, num_proxies, width
        self.phi = MLP(width, hidden, num_proxies * width)

    def forward(self, events: EventSequence) -> Tensor:
        """A batch's events -> (R, 1, F * k, d), k proxies per behaviour."""
        mapped = self.phi(events.table if events.extra is None else events.index.gather(events.table) + events.extra)
        if events.extra is None:
            sums = events.index.sums(mapped, events.bags, events.num_bags)
        else:
            sums = mapped.new_zeros(events.num_bags, mapped.shape[1]).index_add(0, events.bags, mapped)
        return sums.view(-1, 1, self.num_behaviours * self.num_proxies, self.width)
