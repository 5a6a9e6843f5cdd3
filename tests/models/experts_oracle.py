"""Mixtures of experts, one candidate, one expert and one gate at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from infnet.layers.experts import Experts, ProgressiveExtraction

__all__ = ["experts_written_out", "extraction_written_out", "mixed"]


def experts_written_out(experts: Experts, first: Tensor) -> list[Tensor]:
    """What each expert says, from all first layers side by side (E * widths[0],)."""
    out = []
    for index, own in enumerate(first.chunk(experts.num_experts)):
        x = own.clamp(min=0)
        for layer in experts.layers:
            x = (x @ layer.weight[index] + layer.bias[index]).clamp(min=0)
        out.append(x)
    return out


def mixed(experts: list[Tensor], logits: Tensor) -> Tensor:
    """The experts' average with weights softmax(logits)."""
    weights = logits.exp() / logits.exp().sum()
    return sum((weight * expert for weight, expert in zip(weights, experts, strict=True)), torch.zeros_like(experts[0]))


def extraction_written_out(extraction: ProgressiveExtraction, first: Tensor, logits: Tensor) -> Tensor:
    """All levels, from the first one's (first_width,) and (num_logits,) -> (T, widths[-1])."""
    num_tasks, num_shared, num_specific = (
        getattr(extraction.levels[0], name) for name in ("num_tasks", "num_shared", "num_specific")
    )
    own_gates = num_tasks * (num_specific + num_shared)
    task_gates, shared_gate = list(logits[:own_gates].view(num_tasks, -1)), logits[own_gates:]
    fused: list[Tensor] = []
    for index, level in enumerate(extraction.levels):
        if index:
            begin, task_gates = extraction.between[index - 1], []
            width = extraction.first_width // level.num_experts
            firsts = []
            for task in range(num_tasks):
                out = fused[task] @ begin.specific.weight[task] + begin.specific.bias[task]
                firsts.append(out[: num_specific * width])
                task_gates.append(out[num_specific * width :])
            out = begin.shared.weight @ fused[num_tasks] + begin.shared.bias
            first = torch.cat([*firsts, out[: num_shared * width]])
            shared_gate = out[num_shared * width :]
        experts = experts_written_out(level.experts, first)
        shared = experts[num_tasks * num_specific :]
        fused = []
        for task in range(num_tasks):
            own = experts[task * num_specific : (task + 1) * num_specific]
            fused.append(mixed(own + shared, task_gates[task]))
        if index < len(extraction.levels) - 1:
            fused.append(mixed(experts, shared_gate))
    return torch.stack(fused)
