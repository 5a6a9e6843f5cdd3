"""Reads that weigh all tokens alike: what is left of cross attention when its weights are taken away.

Same seams as :mod:`infnet.layers.attention`: token sets to read from, and one arrow per kind of queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infnet.layers.attention import TokenSet
from infnet.layers.events import EventSequence
from infnet.layers.gather import RowIndex

__all__ = ["AverageRead", "field_average", "history_average", "task_average"]


class AverageRead(nn.Module):
    """One arrow: every query, of width d, reads the plain average of the tokens, of width d', times a matrix."""

    num_heads = 1

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(token_width)
        self.value = nn.Parameter(torch.empty(token_width, width).uniform_(-bound, bound))
        """W_V."""

    def query_map(self) -> Tensor:
        """(d, d'), zeros: queries only say how many reads are wanted."""
        return self.value.new_zeros(self.value.shape[::-1])

    def value_map(self) -> Tensor:
        """(d', d)."""
        return self.value


class _AverageTokens:
    """Tokens of which nobody wants more than their average (R, a, 1, d)."""

    def __init__(self, average: Tensor) -> None:
        self._average = average

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """The average of gated tokens is the gated average."""
        average = self._average if gate is None else self._average * gate
        return [average.expand(torch.broadcast_shapes(average.shape, q.shape)) for q in queries]


def history_average(events: EventSequence) -> TokenSet:
    """A request's events of all behaviours; zeros for a request without any."""
    sums = events.index.sums(events.table, events.request_starts)
    if events.extra is not None:
        sums = sums.index_add(0, events.request, events.extra.to(sums.dtype))
    average = sums / events.lengths.clamp(min=1)[:, None]
    return _AverageTokens(average[:, None, None])


def field_average(request: Tensor, item: Tensor, own: Tensor, candidates: RowIndex) -> TokenSet:
    """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)."""
    total = candidates.gather(item.sum(dim=1)) + own.sum(dim=2) + request.sum(dim=1)[:, None]
    num_fields = request.shape[1] + item.shape[1] + own.shape[2]
    return _AverageTokens((total / num_fields)[:, :, None])


def task_average(tokens: Tensor) -> TokenSet:
    """Task tokens (1, 1, T, d) or (R, N, T, d)."""
    return _AverageTokens(tokens.mean(dim=2, keepdim=True))
