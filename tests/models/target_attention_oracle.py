"""DIN's attention, one event at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def interest_written_out(attention, target: Tensor, events: list[Tensor], normalize: bool = False) -> Tensor:
    """The events' sum, each weighted by a network that sees it beside the target; with ``normalize`` by a softmax."""
    if not events:
        return torch.zeros_like(target)
    weights = []
    for event in events:
        joined = torch.cat([event, target, event - target, event * target])
        x = attention.first.weight @ joined + attention.first.bias
        for layer in attention.rest:
            x = layer.linear.weight @ torch.where(x >= 0, x, layer.slope * x) + layer.linear.bias
        weights.append(x)
    stacked = torch.stack(weights)  # (n, 1)
    return ((stacked.softmax(dim=0) if normalize else stacked) * torch.stack(events)).sum(dim=0)
