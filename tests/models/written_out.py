"""What every model's test needs to compare it with its equations written out, one candidate at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from infnet.data.batch import RequestBatch
from infnet.data.layout import Layout
from infnet.models import ModelConfig, RankingModel
from random_batches import make_layout


def layouts(**others: st.SearchStrategy[Any]) -> st.SearchStrategy[Layout]:
    """Layouts with and without each kind of field, of history and of task; strategies by name replace the usual."""
    usual = {
        "user": st.integers(0, 3),
        "context": st.integers(0, 2),
        "item": st.integers(2, 4),
        "candidate": st.integers(0, 2),
        "tags": st.booleans(),
        "dense": st.booleans(),
        "rich_sides": st.sampled_from([("user", "item"), ("user", "context", "item", "candidate")]),
        "lengths": st.sampled_from([(), (1,), (6, 3), (2, 5, 3)]),
        "gap": st.booleans(),
        "position": st.booleans(),
        "tasks": st.integers(1, 4),
    }
    return st.builds(make_layout, **(usual | others))


def make_model(
    cls: type[RankingModel], layout: Layout, config: ModelConfig, seed: int = 0, scale: float = 100
) -> RankingModel:
    """A model that scores in double precision, its embeddings scaled until they matter beside the biases."""
    torch.manual_seed(seed)
    model = cls(layout, config).eval().double()
    events = model.inputs.events
    with torch.no_grad():
        model.embedding.weight.mul_(scale)
        for extra in [] if events is None else [*events.position, *events.gap]:
            extra.mul_(scale)
    return model


def every_candidate(batch: RequestBatch, one: Callable[[int, int], Tensor]) -> Tensor:
    """Logits (R, N, T), from a function that gives those (T,) of the candidate c of request r."""
    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name, those that hold a number."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.numel()}


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """With respect to the inputs, of a sum in which every value of ``out`` has a weight of its own."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), inputs, materialize_grads=True)
    return [gradient.to_dense() for gradient in found]


def assert_same_function(
    fast: Tensor,
    slow: Tensor,
    inputs: Sequence[Tensor],
    names: Sequence[str] = (),
    rtol: float = 1e-7,
    atol: float = 1e-8,
) -> None:
    """Equal values, and within the tolerances equal gradients with respect to the inputs, which may have names."""
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    names = names or [f"input {i}" for i in range(len(inputs))]
    for name, mine, plain in zip(names, gradients(fast, inputs), gradients(slow, inputs), strict=True):
        assert_close(mine, plain, rtol=rtol, atol=atol, msg=lambda text, name=name: f"gradient of {name}: {text}")


def assert_equals(
    model: RankingModel, batch: RequestBatch, written_out: Callable[..., Tensor], **tolerances: float
) -> None:
    """The model's logits and its parameters' gradients are those of ``written_out(model, batch)``."""
    names, parameters = zip(*parameters_of(model).items(), strict=True)
    assert_same_function(model(batch), written_out(model, batch), parameters, names, **tolerances)
