"""Cross networks, one candidate and one expert at a time."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from experts_oracle import mixed
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from torch import Tensor

from infnet.models import RankingModel


def mixture_written_out(layer, x: Tensor, num_experts: int, rank: int) -> Tensor:
    """What a mixture of low-rank experts makes of x, before it is multiplied with the first layer's."""
    experts = []
    for k in range(num_experts):
        own = slice(k * rank, (k + 1) * rank)
        low = torch.tanh(layer.core[k].T @ torch.tanh(layer.down.weight[own] @ x))
        experts.append(layer.up.weight[:, own] @ low + layer.up.bias)
    return mixed(experts, layer.down.weight[num_experts * rank :] @ x)


def after_the_cross_network(model: RankingModel, inputs: WrittenInputs, r: int, c: int, crossed: Tensor) -> Tensor:
    """Logits (T,) of a candidate whose cross network gives ``crossed``: the deep network is after it or beside it."""
    trunk, num_tasks = model.trunk, len(model.layout.tasks)
    if model.config.structure == "stacked":
        deep = layers_written_out(trunk.rest, trunk.first.weight @ crossed + trunk.first.bias).clamp(min=0)
        return heads_written_out(model.heads, deep.expand(num_tasks, -1))
    first = input_linear_written_out(trunk.first, inputs.sides(r, c), request=inputs.pooled(r))
    deep = layers_written_out(trunk.rest, first).clamp(min=0)
    return heads_written_out(_over_both(model.heads), torch.cat([deep, crossed]).expand(num_tasks, -1))


def _over_both(heads) -> SimpleNamespace:
    """Heads whose first layer is one over the deep and the cross network's outputs side by side."""
    first, *others = heads.own
    num_tasks, _, out_width = first.weight.shape
    of_cross = heads.shared.weight.view(num_tasks, out_width, -1).mT
    joined = SimpleNamespace(weight=torch.cat([first.weight, of_cross], dim=1), bias=first.bias)
    return SimpleNamespace(own=[joined, *others])
