"""Cross attention with folded gates: a few queries read from many tokens that are never projected (INFNet 3.2).

Tokens are only ever multiplied by channel-wise gates, so instead of gating and projecting the tokens, the gate and
the key projection are folded into the queries, and the value projection is applied to what was read (identity A):

    logits = ((Q W_Q W_K^t) * G / sqrt(d_k)) X^t        output = ((softmax(logits) X) * G) W_V

Queries are (R, a, q, d): a = N where they depend on the candidate, a = 1 where one request's candidates share them
(identities B and C), so what is request-level is read once per request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infnet.layers.events import EventSequence
from infnet.layers.gather import RowIndex

__all__ = ["CrossAttention", "FieldTokens", "HistoryTokens", "TaskTokens", "TokenSet", "cross_attend"]


class TokenSet(Protocol):
    """Tokens that queries can read."""

    def read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Softmax average of the tokens for each query; scale and key projection are in the queries already.

        Shape: each (R, a, q, d) -> (R, a', q, d), a' = N if the tokens or the queries depend on the candidate.
        """
        ...


class HistoryTokens:
    """A request's events, shared by its candidates.

    A request with nothing present, such as a user without history, reads zeros.
    """

    def __init__(self, events: EventSequence) -> None:
        packed = events.packed
        self.tokens = events.chunks()
        self._sizes = [requests for requests, _ in packed.chunks]
        self._order = RowIndex(packed.order, len(packed.order)) if len(packed.chunks) > 1 else None
        self._back = RowIndex(packed.order.argsort(), len(packed.order))
        self._bias, self._scale = [], []
        for lengths, tokens in zip(packed.lengths.split(self._sizes), self.tokens, strict=True):
            # A row without a single key would be NaN: let it attend to its padding, then read zeros.
            is_empty = (lengths == 0)[:, None]
            absent = (torch.arange(tokens.shape[1], device=lengths.device) >= lengths[:, None]) & ~is_empty
            self._bias.append(torch.zeros_like(absent, dtype=tokens.dtype).masked_fill_(absent, -torch.inf))
            self._scale.append((~is_empty).to(tokens.dtype)[:, :, None] if bool(is_empty.any()) else None)

    def read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """All queries in one fused attention call per chunk, a candidate's or not."""
        flat = torch.cat([q.flatten(1, 2) for q in queries], dim=1)  # (R, sum of a * q, d)
        total = flat.shape[1:]
        if self._order is not None:
            flat = self._order.gather(flat.flatten(1)).unflatten(1, total)
        out = []
        for part, tokens, bias, scale in zip(
            flat.split(self._sizes), self.tokens, self._bias, self._scale, strict=True
        ):
            keys, mask = tokens[:, None], bias[:, None, None]
            read = F.scaled_dot_product_attention(part[:, None], keys, keys, attn_mask=mask, scale=1.0).squeeze(1)
            out.append(read if scale is None else read * scale)
        read = torch.cat(out)
        if self._order is not None:
            read = self._back.gather(read.flatten(1)).unflatten(1, total)
        parts = read.split([q.shape[1] * q.shape[2] for q in queries], dim=1)
        return [part.unflatten(1, q.shape[1:3]) for part, q in zip(parts, queries, strict=True)]


class FieldTokens:
    """Categorical tokens: request (R, M_r, d), read once per request, and candidate (R, N, M_c, d)."""

    def __init__(self, request: Tensor, candidate: Tensor) -> None:
        if candidate.shape[1] == 1:  # one candidate shares with nobody: one group of tokens will do
            candidate = torch.cat([request[:, None], candidate], dim=2)
            request = request[:, :0]
        self.request, self.candidate = request, candidate

    def read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Queries of one level in one call; request-level ones look at the request's tokens once (identity C)."""
        num_candidates = self.candidate.shape[1]
        out: list[Tensor | None] = [None] * len(queries)
        for level in sorted({q.shape[1] for q in queries}):
            chosen = [i for i, q in enumerate(queries) if q.shape[1] == level]
            stacked = torch.cat([queries[i] for i in chosen], dim=2)
            read = self._read_shared(stacked) if level < num_candidates else self._read_each(stacked)
            parts = read.split([queries[i].shape[2] for i in chosen], dim=2)
            for i, part in zip(chosen, parts, strict=True):
                out[i] = part
        return [part for part in out if part is not None]

    def _read_each(self, queries: Tensor) -> Tensor:
        """(R, N, q, d): one softmax over both groups."""
        _, num, q, _ = queries.shape
        own = self.candidate.flatten(0, 1)  # (R * N, M_c, d)
        own_queries = queries.flatten(0, 1)
        if self.request.shape[1] == 0:
            return torch.bmm(torch.bmm(own_queries, own.mT).softmax(dim=-1), own).view(-1, num, q, own.shape[2])
        request_logits = torch.bmm(queries.flatten(1, 2), self.request.mT).unflatten(1, (num, q))
        own_logits = torch.bmm(own_queries, own.mT).view(-1, num, q, own.shape[1])
        weights = torch.cat([request_logits, own_logits], dim=-1).softmax(dim=-1)
        on_request, on_own = weights.split([self.request.shape[1], own.shape[1]], dim=-1)
        read = torch.bmm(on_request.flatten(1, 2), self.request).unflatten(1, (num, q))
        return read + torch.bmm(on_own.flatten(0, 1), own).view_as(read)

    def _read_shared(self, queries: Tensor) -> Tensor:
        """(R, 1, q, d) -> (R, N, q, d): each group read by itself, merged by its share of the softmax's mass."""
        request_logits = queries.squeeze(1) @ self.request.mT  # (R, q, M_r)
        own_logits = queries @ self.candidate.mT  # (R, N, q, M_c)
        on_request = request_logits.softmax(dim=-1) @ self.request
        on_own = own_logits.softmax(dim=-1) @ self.candidate
        share = (request_logits.logsumexp(dim=-1)[:, None] - own_logits.logsumexp(dim=-1)).sigmoid()[..., None]
        return share * on_request[:, None] + (1 - share) * on_own


class TaskTokens:
    """Task tokens (R, b, T, d): b = 1 while they are learned constants, N once they have read a candidate."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Queries of one level in one call."""
        return [(q @ self.tokens.mT).softmax(dim=-1) @ self.tokens for q in queries]


class CrossAttention(nn.Module):
    """One arrow: the weights with which one kind of queries reads one kind of tokens (operator CA).

    With h heads the folded query is h vectors of width d.
    """

    def __init__(self, width: int, num_heads: int = 1) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width = width // num_heads
        bound = 1 / math.sqrt(width)
        self.query, self.key, self.value = (
            nn.Parameter(torch.empty(num_heads, width, head_width).uniform_(-bound, bound)) for _ in range(3)
        )
        """W_Q, W_K, W_V as (h, d, d_k)."""

    def fold(self, queries: Tensor) -> Tensor:
        """Queries (R, a, q, d) -> Q W_Q W_K^t / sqrt(d_k), heads side by side: (R, a, q * h, d)."""
        folded = (self.query @ self.key.mT) / math.sqrt(self.query.shape[-1])  # (h, d, d)
        together = folded.transpose(0, 1).flatten(1)  # (d, h * d)
        return (queries @ together).unflatten(-1, (self.num_heads, -1)).flatten(2, 3)

    def project(self, read: Tensor) -> Tensor:
        """What the folded queries read (R, a, q * h, d) -> (R, a, q, d): the values' projection, heads concatenated."""
        if self.num_heads == 1:
            return read @ self.value.squeeze(0)
        heads = read.unflatten(2, (-1, self.num_heads))[..., None, :]  # (R, a, q, h, 1, d)
        return (heads @ self.value).flatten(-3)


def cross_attend(
    tokens: TokenSet, arrows: Sequence[tuple[CrossAttention, Tensor]], gate: Tensor | None = None
) -> list[Tensor]:
    """What several kinds of queries read from one token set, in as few passes over the tokens as possible.

    Args:
        tokens: The tokens before any gate.
        arrows: Weights and queries (R, a, q, d) of each kind.
        gate: Product of the gates so far (R, N, 1, d); None while it is one everywhere.

    Returns:
        One (R, a', q, d) per arrow.
    """
    folded = [arrow.fold(queries) for arrow, queries in arrows]
    if gate is not None:
        folded = [queries * gate for queries in folded]
    read = tokens.read(folded)
    if gate is not None:
        read = [part * gate for part in read]
    return [arrow.project(part) for (arrow, _), part in zip(arrows, read, strict=True)]
