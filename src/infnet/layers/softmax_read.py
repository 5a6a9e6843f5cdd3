"""Softmax averages of tokens, as one differentiable step whose backward writes each token's gradient once.

Autograd over the separate products would write the gradient with respect to the tokens twice per read (as keys and
as values) and add up what several reads leave; tokens are by far the largest tensors of the model, so that decides
the speed of training. Here

    d tokens = [weights; d logits]^t [d read; queries] + (what later reads left)

is one product: each read returns the tokens again, and the next read takes them from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["recorded_weights", "softmax_read"]

_RECORD: ContextVar[list[Tensor] | None] = ContextVar("recorded_weights", default=None)


@contextmanager
def recorded_weights() -> Iterator[list[Tensor]]:
    """Lists the weights (R, a, q, sum of n_i) of every read within, in the order of the reads."""
    record: list[Tensor] = []
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def softmax_read(queries: Tensor, groups: Sequence[Tensor], bias: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Average the tokens of all groups together, weighted by the softmax of ``queries tokens^t + bias``.

    Args:
        queries: (R, a, q, d), scaled.
        groups: Tokens (R, b, n_i, d) with b = a, or b = 1 for tokens that all of the a read.
        bias: (R, 1, 1, sum of n_i) to add to the logits, such as -inf for padding; at least one finite per row.

    Returns:
        What each query read (R, a, q, d), and the groups again for the next read; float32 under autocast.
    """
    device = queries.device.type
    if torch.is_autocast_enabled(device):  # a softmax over hundreds of logits wants its digits
        queries, groups = queries.float(), [group.float() for group in groups]
    with torch.autocast(device, enabled=False):
        read, *again = _SoftmaxRead.apply(queries, bias, *groups)
    return read, again


def _pair(queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Both as batches of matrices: (R, a * q, d) and (R, n, d), or (R * a, q, d) and (R * a, n, d)."""
    if tokens.shape[1] == 1:
        return queries.flatten(1, 2), tokens.squeeze(1)
    return queries.flatten(0, 1), tokens.flatten(0, 1)


class _SoftmaxRead(Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, bias: Tensor | None, *groups: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        shape = queries.shape
        logits = [torch.bmm(q, t.mT).view(*shape[:3], -1) for q, t in (_pair(queries, g) for g in groups)]
        scores = logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(dim=-1)
        record = _RECORD.get()
        if record is not None:
            record.append(weights)
        read = _read(weights, groups)
        ctx.save_for_backward(queries, weights, *groups)
        return (read, *(g.view_as(g) for g in groups))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor | None, *d_later: Tensor | None) -> tuple[Tensor | None, ...]:
        queries, weights, *groups = ctx.saved_tensors
        if d_read is None:
            return (None, None, *d_later)
        d_read = d_read.contiguous()
        d_weights = [torch.bmm(d, t.mT).view(*weights.shape[:3], -1) for d, t in (_pair(d_read, g) for g in groups)]
        joined = d_weights[0] if len(groups) == 1 else torch.cat(d_weights, dim=-1)
        d_logits = torch._softmax_backward_data(joined, weights, -1, weights.dtype)
        d_queries = _read(d_logits, groups)
        rights = torch.cat([d_read, queries], dim=2)  # (R, a, 2q, d)
        lefts = torch.cat([weights, d_logits], dim=2)  # (R, a, 2q, n)
        d_groups = []
        parts = lefts.split([g.shape[2] for g in groups], dim=-1)
        for part, group, later in zip(parts, groups, d_later, strict=True):
            right, tokens = _pair(rights, group)
            left = part.reshape(*right.shape[:2], -1).mT
            if later is None:
                gradient = torch.bmm(left, right)
            else:
                gradient = torch.baddbmm(later.reshape(tokens.shape), left, right)
            d_groups.append(gradient.view_as(group))
        return (d_queries, None, *d_groups)


def _read(weights: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Weights (R, a, q, sum of n_i) -> (R, a, q, d)."""
    total: Tensor | None = None
    for part, group in zip(weights.split([g.shape[2] for g in groups], dim=-1), groups, strict=True):
        left, tokens = _pair(part, group)
        out = torch.bmm(left, tokens).view(*weights.shape[:3], -1)
        total = out if total is None else total.add_(out)
    assert total is not None
    return total
