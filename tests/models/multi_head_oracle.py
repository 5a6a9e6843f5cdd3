"""Multi-head attention and norms, one vector at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attended(query: Tensor, keys: list[Tensor], values: list[Tensor], num_heads: int) -> Tensor:
    """What one projected query (d,) reads from projected keys and values, head by head."""
    width = len(query) // num_heads
    out = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        logits = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in keys])
        shares = logits.exp() / logits.exp().sum()
        out.append(sum(share * value[part] for share, value in zip(shares, values, strict=True)))
    return torch.cat(out)


def layer_norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """Of one vector."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
