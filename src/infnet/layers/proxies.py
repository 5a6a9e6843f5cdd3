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
        widths = [n * width for n in num_tokens]
        self.first = SplitLinear(widths, hidden[0] if hidden else out_width)
        self.rest = (
            nn.Sequential(nn.ReLU(), Dropout(dropout), MLP(hidden[0], hidden[1:], out_width, dropout))
            if hidden
            else nn.Identity()
        )
        self.skip = SplitLinear(widths[1:], out_width) if skip else None
        """From the tokens of the item and the candidate alone."""

    def forward(self, request: Tensor, item: Tensor, own: Tensor, candidates: RowIndex) -> Tensor:
        """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)
        -> (R, N, m, d)."""
        item, own = item.flatten(1), own.flatten(2)
        out = candidates.gather(self.first.part(1, item))
        out += self.first.part(0, request.flatten(1), with_bias=True)[:, None]
        if own.shape[2]:
            out += self.first.part(2, own)
        out = self.rest(out)
        if self.skip is not None:
            out = out + candidates.gather(self.skip.part(0, item, with_bias=True))
            if own.shape[2]:
                out += self.skip.part(1, own)
        return out.unflatten(-1, self.shape)


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
