"""Proxies: the few tokens that summarise a request's fields and each of its histories (INFNet eqs. 2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.data.batch import RequestBatch
from infnet.layers.mlp import MLP, SplitLinear
from infnet.layers.tokens import EventSequence

__all__ = ["CategoricalProxies", "SequenceProxies"]


class CategoricalProxies(nn.Module):
    """C~ = phi_cat(flatten(C)) (eq. 2), its first layer once per request and once per distinct item (identity B)."""

    def __init__(
        self, num_tokens: Sequence[int], width: int, num_proxies: int, hidden: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shape = (num_proxies, width)
        self.first = SplitLinear([n * width for n in num_tokens], hidden[0] if hidden else num_proxies * width)
        rest = MLP(hidden[0], hidden[1:], num_proxies * width, dropout) if hidden else nn.Identity()
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), rest) if hidden else rest

    def forward(self, request: Tensor, item: Tensor, own: Tensor, batch: RequestBatch) -> Tensor:
        """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)
        -> (R, N, m, d)."""
        hidden = self.first.part(0, request.flatten(1))[:, None] + self.first.bias
        hidden = hidden + F.embedding(batch.candidate_item, self.first.part(1, item.flatten(1)))
        if own.shape[2]:
            hidden = hidden + self.first.part(2, own.flatten(2))
        out: Tensor = self.rest(hidden)
        return out.unflatten(-1, self.shape)


class SequenceProxies(nn.Module):
    """S~_a = sum over the present t of phi_seq(s_(a,t)) (eq. 4), phi_seq once per distinct event where it can be."""

    def __init__(self, lengths: Sequence[int], width: int, num_proxies: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.lengths, self.width = list(lengths), width
        self.phi = MLP(width, hidden, num_proxies * width)

    def forward(self, events: EventSequence, present: Tensor) -> Tensor:
        """A batch's events, present (R, L) -> (R, 1, F * k, d), k proxies per behaviour."""
        if events.is_item_only:
            table = self.phi(events.table)
            # One more row, zero, for what is absent.
            padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
            index = torch.where(present, events.index, table.shape[0])
            sums = [F.embedding_bag(part.contiguous(), padded, mode="sum") for part in index.split(self.lengths, dim=1)]
        else:
            mapped = self.phi(events.tokens) * present[..., None]
            sums = [part.sum(dim=1) for part in mapped.split(self.lengths, dim=1)]
        return torch.stack(sums, dim=1).view(present.shape[0], 1, -1, self.width)
