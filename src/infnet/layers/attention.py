"""Cross attention with folded gates: a few queries read from many tokens that are never projected (INFNet 3.2).

Tokens are only ever multiplied by channel-wise gates, so instead of gating and projecting the tokens, the gate and
the key projection are folded into the queries, and the value projection is applied to what was read (identity A):

    logits = ((Q W_Q W_K^t) * G / sqrt(d_k)) X^t        output = ((softmax(logits) X) * G) W_V

Queries are (R, a, q, d): a = N where they depend on the candidate, a = 1 where one request's candidates share them
(identities B and C), so what is request-level is read once per request. Learned constants are (1, 1, q, d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

from infnet.layers.events import EventSequence
from infnet.layers.gather import RowIndex
from infnet.layers.softmax_read import softmax_read
from infnet.layers.table_read import Rows, TableTokens, reads_tables

__all__ = [
    "Arrow",
    "CrossAttention",
    "FieldTokens",
    "HistoryTokens",
    "TaskTokens",
    "TokenSet",
    "cross_attend",
    "field_tokens",
    "fold",
    "history_tokens",
    "project",
    "task_tokens",
]


class TokenSet(Protocol):
    """Tokens that queries can read."""

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """Softmax average of the gated tokens for each query; scale and key projection are in the queries already.

        Args:
            queries: (R, a, q, d) each.
            gate: (R, a, 1, d), of the tokens' channels; None for one everywhere.

        Returns:
            (R, a', q, d) each, a' = N if tokens, queries or gate depend on the candidate.
        """
        ...


def history_tokens(events: EventSequence) -> TokenSet:
    """A request's events, where they are if they can be read there."""
    if events.extra is not None or not reads_tables(events.table):
        return HistoryTokens(events)
    return TableTokens((events.table[:, None], Rows(events.index.rows, events.request_starts)))


def field_tokens(request: Tensor, item: Tensor, own: Tensor, candidates: RowIndex) -> TokenSet:
    """Tokens of the request (R, M_r, d), of distinct items (J, M_i, d), of each candidate (R, N, M_c, d)."""
    num_requests, num_candidates = own.shape[:2]
    if num_candidates > 1 or not reads_tables(item):
        candidate = candidates.gather(item.flatten(1)).unflatten(-1, item.shape[1:])
        return FieldTokens(request, candidate, own)
    each, items = Rows.one_each(torch.arange(num_requests)), candidates.rows.flatten().to(torch.int64)
    return TableTokens((request, each), (item, Rows.one_each(items)), (own.flatten(0, 1), each))


def task_tokens(tokens: Tensor, num_requests: int) -> TokenSet:
    """Task tokens: (1, 1, T, d) while they are learned constants, (R, N, T, d) once they have read a candidate."""
    if tokens.shape[1] > 1 or not reads_tables(tokens):
        return TaskTokens(tokens)
    return TableTokens((tokens.squeeze(1), Rows.one_each(torch.arange(num_requests) % tokens.shape[0])))


def _with_gate(
    read: Callable[[Sequence[Tensor]], list[Tensor]], queries: Sequence[Tensor], gate: Tensor | None
) -> list[Tensor]:
    """A gate on the tokens is a gate on the queries and on what they read (identity A)."""
    if gate is None:
        return read(queries)
    return [part * gate for part in read([q * gate for q in queries])]


class HistoryTokens:
    """A request's events, shared by its candidates.

    A request with nothing present, such as a user without history, reads zeros.
    """

    def __init__(self, events: EventSequence) -> None:
        packed = events.packed
        self.tokens = events.chunks()
        self._sizes = [requests for requests, _ in packed.chunks]
        self._order = RowIndex(packed.order, len(packed.order))
        self._back = RowIndex(packed.order.argsort(), len(packed.order))
        self._bias, self._scale = [], []
        for lengths, tokens in zip(packed.lengths.split(self._sizes), self.tokens, strict=True):
            # A row without a single key would be NaN: let it attend to its padding, then read zeros.
            is_empty = (lengths == 0)[:, None]
            absent = (torch.arange(tokens.shape[1], device=lengths.device) >= lengths[:, None]) & ~is_empty
            bias = torch.zeros_like(absent, dtype=tokens.dtype).masked_fill_(absent, -torch.inf)
            self._bias.append(bias[:, None, None])
            self._scale.append((~is_empty).to(tokens.dtype)[:, :, None] if bool(is_empty.any()) else None)

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """All queries in one pass over each chunk, a candidate's or not."""
        return _with_gate(self._read, queries, gate)

    def _read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        num_requests = len(self._order.rows)
        flat = torch.cat([q.expand(num_requests, -1, -1, -1).flatten(1, 2) for q in queries], dim=1)
        shape = flat.shape[1:]  # (sum of a * q, d)
        if len(self.tokens) > 1:
            flat = self._order.gather(flat.flatten(1)).unflatten(1, shape)
        out = []
        for i, part in enumerate(flat.split(self._sizes)):
            read, (again,) = softmax_read(part[:, None], [self.tokens[i][:, None]], self._bias[i])
            self.tokens[i] = again.squeeze(1)
            scale = self._scale[i]
            out.append(read.squeeze(1) if scale is None else read.squeeze(1) * scale)
        joined = torch.cat(out)
        if len(self.tokens) > 1:
            joined = self._back.gather(joined.flatten(1)).unflatten(1, shape)
        parts = joined.split([q.shape[1] * q.shape[2] for q in queries], dim=1)
        return [part.unflatten(1, q.shape[1:3]) for part, q in zip(parts, queries, strict=True)]


class FieldTokens:
    """Categorical tokens: request (R, M_r, d), read once per request, and groups of candidate's (R, N, M_i, d)."""

    def __init__(self, request: Tensor, *candidate: Tensor) -> None:
        self.groups = [request[:, None], *candidate]
        self._num_requests, self._num_candidates = candidate[0].shape[:2]

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """Queries of one level in one call; request-level ones look at the request's tokens once (identity C)."""
        return _with_gate(self._read, queries, gate)

    def _read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        out: list[Tensor | None] = [None] * len(queries)
        for level in sorted({q.shape[1] for q in queries}):
            chosen = [i for i, q in enumerate(queries) if q.shape[1] == level]
            stacked = torch.cat([queries[i].expand(self._num_requests, -1, -1, -1) for i in chosen], dim=2)
            if level < self._num_candidates:
                read = self._read_shared(stacked)
            else:
                read, self.groups = softmax_read(stacked, self.groups)
            parts = read.split([queries[i].shape[2] for i in chosen], dim=2)
            for i, part in zip(chosen, parts, strict=True):
                out[i] = part
        return [part for part in out if part is not None]

    def _read_shared(self, queries: Tensor) -> Tensor:
        """(R, 1, q, d) -> (R, N, q, d): both kinds read by themselves, merged by their shares of the softmax's mass."""
        request, candidate = self.groups[0], torch.cat(self.groups[1:], dim=2)
        request_logits = queries @ request.mT  # (R, 1, q, M_r)
        own_logits = queries @ candidate.mT  # (R, N, q, M_c)
        on_request = request_logits.softmax(dim=-1) @ request
        on_own = own_logits.softmax(dim=-1) @ candidate
        share = (request_logits.logsumexp(dim=-1) - own_logits.logsumexp(dim=-1)).sigmoid()[..., None]
        return share * on_request + (1 - share) * on_own


class TaskTokens:
    """Task tokens, constants (1, 1, T, d) or each row's own (R, N, T, d)."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """Constants in one product for all rows; a row's own tokens row by row."""
        return _with_gate(self._read, queries, gate)

    def _read(self, queries: Sequence[Tensor]) -> list[Tensor]:
        if self.tokens.shape[:2] == (1, 1):
            constant = self.tokens[0, 0]
            return [(q @ constant.T).softmax(dim=-1) @ constant for q in queries]
        out = []
        for q in queries:
            read, (self.tokens,) = softmax_read(q.expand(-1, self.tokens.shape[1], -1, -1), [self.tokens])
            out.append(read)
        return out


class CrossAttention(nn.Module):
    """One arrow: the weights with which one kind of queries reads one kind of tokens (operator CA).

    Tokens of a width d' of their own cost what they are wide. With h heads the folded query is h vectors of width d'.

    Args:
        width: d, of the queries and of what they get.
        num_heads: h.
        token_width: d'; d by default.
    """

    def __init__(self, width: int, num_heads: int = 1, token_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width, token_width = width // num_heads, token_width or width
        self.query, self.key, self.value = (
            nn.Parameter(torch.empty(num_heads, w, head_width).uniform_(-(w**-0.5), w**-0.5))
            for w in (width, token_width, token_width)
        )
        """W_Q (h, d, d_k), W_K and W_V (h, d', d_k)."""

    def query_map(self) -> Tensor:
        """W_Q W_K^t / sqrt(d_k), heads side by side: (d, h * d')."""
        folded = (self.query @ self.key.mT) / math.sqrt(self.query.shape[-1])  # (h, d, d')
        return folded.transpose(0, 1).flatten(1)

    def value_map(self) -> Tensor:
        """W_V of all heads, one below the other, each to its own channels: (h * d', d)."""
        return self.value.squeeze(0) if self.num_heads == 1 else torch.block_diag(*self.value)


class Arrow(Protocol):
    """Weights with which one kind of queries reads one kind of tokens: as many reads of width d' a query as heads."""

    num_heads: int

    def query_map(self) -> Tensor:
        """(d, h * d'): from a query to what looks at the tokens as they are."""
        ...

    def value_map(self) -> Tensor:
        """(h * d', d): from what that read to what the query gets."""
        ...


def fold(queries: Tensor, arrows: Sequence[Arrow]) -> list[Tensor]:
    """What one kind of queries (R, a, q, d) looks with by each of its arrows: (R, a, q * h, d')."""
    maps = [arrow.query_map() for arrow in arrows]
    parts = (queries @ torch.cat(maps, dim=1)).split([m.shape[1] for m in maps], dim=-1)
    return [p.unflatten(-1, (arrow.num_heads, -1)).flatten(2, 3) for p, arrow in zip(parts, arrows, strict=True)]


def project(read: Sequence[Tensor], arrows: Sequence[Arrow]) -> Tensor:
    """The sum of what one kind of queries gets by its arrows: (R, a, q * h, d') each -> (R, a', q, d)."""
    by_level: dict[tuple[bool, bool], list[tuple[Tensor, Tensor]]] = {}
    for part, arrow in zip(read, arrows, strict=True):
        heads = part.unflatten(2, (-1, arrow.num_heads)).flatten(3)
        level = (bool(part.shape[0] == 1), bool(part.shape[1] == 1))
        by_level.setdefault(level, []).append((heads, arrow.value_map()))
    products = [
        torch.cat([heads for heads, _ in pairs], dim=-1) @ torch.cat([values for _, values in pairs])
        for pairs in by_level.values()
    ]
    return reduce(torch.add, products)


def cross_attend(
    tokens: Mapping[str, TokenSet],
    queries: Mapping[str, Tensor],
    arrows: Mapping[tuple[str, str], Arrow],
    gates: Mapping[str, Tensor] | None = None,
    shifts: Mapping[str, Tensor] | None = None,
) -> dict[tuple[str, str], Tensor]:
    """What several kinds of queries read from several types of tokens, in as few passes over the tokens as possible.

    Args:
        tokens: By type, before any gate; at least one for every reader if they are shifted.
        queries: (R, a, q, d) by kind.
        arrows: By kind of queries and type of tokens; the kinds read in this order.
        gates: Product of the gates so far (R, N, 1, d') by type; missing while it is one everywhere.
        shifts: (R, N, 1, d') to add to the gated tokens, by type. It adds the same to all logits of a query, which a
            softmax does not see, and itself to what is read.

    Returns:
        (R, a', q * h, d') by kind and type, for :func:`project`.
    """
    folded: dict[tuple[str, str], Tensor] = {}
    for kind, query in queries.items():
        own = {pair: arrow for pair, arrow in arrows.items() if pair[0] == kind and pair[1] in tokens}
        if own:
            folded |= zip(own, fold(query, [*own.values()]), strict=True)
    found: dict[tuple[str, str], Tensor] = {}
    for type_, token_set in tokens.items():
        pairs = [pair for pair in arrows if pair in folded and pair[1] == type_]
        if pairs:
            read = token_set.read([folded[pair] for pair in pairs], (gates or {}).get(type_))
            shift = (shifts or {}).get(type_)
            found |= zip(pairs, read if shift is None else [part + shift for part in read], strict=True)
    return found
