"""Proxies: the few tokens that summarise a request's fields and each of its histories (INFNet eqs. 2 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.layers.dropout import Dropout
from infnet.layers.events import EventSequence, PaddedHistory
from infnet.layers.gather import RowIndex
from infnet.layers.mlp import MLP

__all__ = ["CategoricalProxies", "SequenceProxies", "behaviour_averages"]


class CategoricalProxies(nn.Module):
    """C~ = phi_cat(flatten(C)) (eq. 2), its first layer once per request and once per distinct item (identity B).

    With ``skip``, a linear map of the item's and the candidate's tokens is added to an MLP of all.
    """

    def __init__(
        self,
        num_tokens: Sequence[int],
        width: int,
        num_proxies: int,
        hidden: Sequence[int],
        skip: bool = False,
        dropout: float = 0.0,
        proxy_width: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = (num_proxies, proxy_width or width)
        out_width = num_proxies * self.shape[1]
        first_width, skip_width = hidden[0] if hidden else out_width, out_width if skip else 0
        self.widths = (first_width, skip_width)
        """Of the first layer's and the skip's outputs, one below the other in :attr:`item` and :attr:`own`."""
        widths = [n * width for n in num_tokens]
        bound, skip_bound = (1 / math.sqrt(max(sum(part), 1)) for part in (widths, widths[1:]))
        first = [torch.empty(first_width, n).uniform_(-bound, bound) for n in widths]
        skips = [torch.empty(skip_width, n).uniform_(-skip_bound, skip_bound) for n in widths[1:]]
        self.request = nn.Parameter(first[0])
        self.item, self.own = (nn.Parameter(torch.cat(both)) for both in zip(first[1:], skips, strict=True))
        self.bias = nn.Parameter(torch.empty(first_width).uniform_(-bound, bound))
        self.rest = (
            nn.Sequential(nn.ReLU(), Dropout(dropout), MLP(hidden[0], hidden[1:], out_width, dropout))
            if hidden
            else nn.Identity()
        )

    def forward(self, request: Tensor, item: Tensor, own: Tensor, candidates: RowIndex) -> Tensor:
        """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)
        -> (R, N, m, d)."""
        return self.of_candidates(candidates.gather(self.of_items(item)), request, own)

    def of_items(self, item: Tensor) -> Tensor:
        """What items (J, M_i, d) contribute to the first layer and the skip: (J, w)."""
        return F.linear(item.flatten(1), self.item)

    def of_candidates(self, of_item: Tensor, request: Tensor, own: Tensor) -> Tensor:
        """The rest: (R, N, w) of each candidate's item, (R, M_r, d), (R, N, M_c, d) -> (R, N, m, d)."""
        if own.shape[2]:
            of_item = of_item + F.linear(own.flatten(2), self.own)
        first, skip = of_item.split(self.widths, dim=-1)
        out = self.rest(first + F.linear(request.flatten(1), self.request, self.bias)[:, None])
        return (out + skip if self.widths[1] else out).unflatten(-1, self.shape)


class SequenceProxies(nn.Module):
    """S~_a = sum over the present t of phi_seq(s_(a,t)) (eq. 4), phi_seq once per distinct event where it can be."""

    def __init__(
        self, num_behaviours: int, width: int, num_proxies: int, hidden: Sequence[int], proxy_width: int | None = None
    ) -> None:
        super().__init__()
        self.num_behaviours, self.num_proxies, self.width = num_behaviours, num_proxies, proxy_width or width
        self.phi = MLP(width, hidden, num_proxies * self.width)

    def forward(self, events: EventSequence) -> Tensor:
        """A batch's events -> (R, 1, F * k, d), k proxies per behaviour."""
        mapped = self.phi(events.table if events.extra is None else events.index.gather(events.table) + events.extra)
        if events.extra is None:
            sums = events.index.sums(mapped, events.bag_starts)
        else:
            sums = mapped.new_zeros(events.counts.numel(), mapped.shape[1]).index_add(0, events.bags, mapped)
        return sums.view(-1, 1, self.num_behaviours * self.num_proxies, self.width)


def behaviour_averages(history: PaddedHistory) -> Tensor:
    """Where every event is a proxy: (R, 1, F, L'), times tokens (R, a, L', d) the average of each behaviour's events.

    A behaviour without events averages to zeros.
    """
    present = history.present
    behaviour = torch.arange(len(history.lengths), device=present.device)
    columns = behaviour.repeat_interleave(torch.tensor(history.lengths, device=present.device))
    members = ((columns == behaviour[:, None]) & present[:, None]).to(history.tokens.dtype)  # (R, F, L')
    return (members / members.sum(dim=-1, keepdim=True).clamp(min=1))[:, None]
