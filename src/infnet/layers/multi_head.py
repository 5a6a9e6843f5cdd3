"""Multi-head attention over projected keys: within a set of tokens, and from candidates to what they share.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["candidate_multi_head", "causal_mask", "multi_head"]


def causal_mask(place: Tensor, present: Tensor, num_queries: int) -> Tensor:
    """Which tokens the first q see: themselves, and of the present ones those that stand after them.

    In a sequence laid out newest first, these are the older ones. Padding sees itself, so that no softmax is empty.

    Args:
        place: (n,) of each token in the sequence.
        present: (R, n) bool.
        num_queries: q.

    Returns:
        (R, q, n) bool.
    """
    itself = torch.eye(num_queries, len(place), dtype=torch.bool, device=place.device)
    return ((place > place[:num_queries, None]) & present[:, None]) | itself


def multi_head(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor, num_heads: int) -> Tensor:
    """Softmax averages of values, head by head, before the output projection.

    Args:
        queries: (B, q, d).
        keys: (B, n, d).
        values: (B, n, d).
        visible: (B, q, n) bool, which keys a query sees; each must see at least one.
        num_heads: A divisor of d.

    Returns:
        (B, q, d), heads side by side.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
    return read.transpose(1, 2).flatten(2)


def candidate_multi_head(
    queries: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    present: Tensor,
    visible: Tensor,
    num_heads: int,
) -> Tensor:
    """The same for tokens of candidates, each reading its request's tokens, which it shares, and its own.

    What is shared is never copied to the candidates (identity B); one softmax runs over both kinds.

    Args:
        queries: (R, N, q, d).
        shared: Keys and values (R, n, d) of the request.
        own: Keys and values (R, N, m, d) of each candidate.
        present: (R, n) bool, which of the shared keys count.
        visible: (q, m) bool, which of its own keys a query sees; at least one.
        num_heads: A divisor of d.

    Returns:
        (R, N, q, d), heads side by side.
    """
    queries = queries * math.sqrt(num_heads / queries.shape[-1])
    absent, unseen = ~present[:, None, None], ~visible
    out = []
    # Head by head: BLAS reads a slice where it is, but five dimensions would be copied into three.
    for q, k, v, own_k, own_v in zip(*(x.chunk(num_heads, dim=-1) for x in (queries, *shared, *own)), strict=True):
        on_shared = (q.flatten(1, 2) @ k.mT).unflatten(1, q.shape[1:3])  # (R, N, q, n)
        logits = [on_shared.masked_fill(absent, -torch.inf), (q @ own_k.mT).masked_fill(unseen, -torch.inf)]
        weights, own_weights = torch.cat(logits, dim=-1).softmax(dim=-1).split([k.shape[1], own_k.shape[2]], dim=-1)
        out.append((weights.flatten(1, 2) @ v).unflatten(1, q.shape[1:3]) + own_weights @ own_v)
    return torch.cat(out, dim=-1)
