"""Recurrence over histories: from the oldest event to the most recent, at each step those that still have one.

Histories come most recent first and padded at their end. Nothing is reversed or padded anew: events are read straight
into the order in which the steps need them, longest history first, so that a step's events lie side by side and short
histories cost what they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from infnet.layers.gather import RowIndex

__all__ = ["AttentionalGRU", "HistoryGRU", "OldestFirst"]


class OldestFirst:
    """The order in which a recurrence reads histories.

    Args:
        present: (R, n) bool, a history's events in front of its padding, the most recent one first. A history without
            events takes one step over its padding, so that every request has a state; readers mask it.
    """

    def __init__(self, present: Tensor) -> None:
        num_requests, num_columns = present.shape
        lengths, order = present.sum(dim=1).clamp(min=1).sort(descending=True, stable=True)
        steps = torch.arange(int(lengths[0]), device=present.device)
        is_read = steps[:, None] < lengths
        places = (order * num_columns + lengths - 1) - steps[:, None]  # (steps, R)
        self._places = places[is_read]
        self._shape = (num_requests, num_columns)
        self._pack = RowIndex(self._places, num_requests * num_columns)
        self._unpack = RowIndex(torch.arange(len(self._places), device=present.device), len(self._places))
        self._back = RowIndex(order.argsort(), num_requests)
        self.counts = is_read.sum(dim=1).cpu()
        """(steps,) requests that take each step; never more than before."""

    def pack(self, values: Tensor) -> Tensor:
        """Values of each event (R, n, d) -> (P, d), step by step."""
        return self._pack.gather(values.flatten(0, 1))

    def unpack(self, packed: Tensor) -> Tensor:
        """The way back, (P, d) -> (R, n, d); padding holds anything finite."""
        return self._unpack.place(packed, self._places, self._shape[0] * self._shape[1]).unflatten(0, self._shape)

    def in_given_order(self, states: Tensor) -> Tensor:
        """States of requests, longest history first -> as the requests came: (R, ...)."""
        return self._back.gather(states.flatten(1)).unflatten(1, states.shape[1:])


class HistoryGRU(nn.Module):
    """The state of a GRU at every event of a history, after that event and all older ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width)

    def forward(self, tokens: Tensor, steps: OldestFirst) -> Tensor:
        """Tokens (R, n, d) -> states (R, n, d), each in its event's column; padding holds anything finite."""
        states, _ = self.gru(PackedSequence(steps.pack(tokens), steps.counts))
        return steps.unpack(states.data)


class AttentionalGRU(nn.Module):
    """AUGRU: a GRU whose update gate is scaled by how much an event matters to a candidate (DIEN, eqs. 11 and 12).

    With W i for the input's projection and U h for the state's, a the attention,

        u = a * sigmoid(W_u i + U_u h),  r = sigmoid(W_r i + U_r h),  h' = (1 - u) h + u tanh(W_h i + r * U_h h).

    Inputs are projected once per request, in one product before the first step; attention 0 keeps the state.

    G. Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019, arXiv 1809.03672.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(width, 3 * width)
        self.state = nn.Linear(width, 3 * width, bias=False)

    def forward(self, inputs: Tensor, attention: Tensor, steps: OldestFirst) -> Tensor:
        """Inputs (R, n, d), attention (R, N, n), 0 where no event is -> last states (R, N, d), zeros without events."""
        counts = steps.counts.tolist()
        by_step = self.input(steps.pack(inputs))[:, None]  # (P, 1, 3d)
        gates, news = (part.split(counts) for part in by_step.split([2 * self.width, self.width], dim=-1))
        weights = steps.pack(attention.mT)[..., None].split(counts)  # (k, N, 1) of each step
        state = attention.new_zeros(counts[0], attention.shape[1], self.width)
        finished = []
        for count, gate, new, weight in zip(counts, gates, news, weights, strict=True):
            if count < len(state):
                state, done = state.split([count, len(state) - count])
                finished.append(done)
            of_gates, of_new = self.state(state).split([2 * self.width, self.width], dim=-1)
            update, reset = (gate + of_gates).sigmoid().chunk(2, dim=-1)
            # Under autocast products are narrower than the state.
            proposal = torch.addcmul(new, reset, of_new).tanh().to(state.dtype)
            state = torch.lerp(state, proposal, weight * update)
        return steps.in_given_order(torch.cat([state, *reversed(finished)]))
