from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.dcnv2 import DCNv2, DCNv2Config
from random_batches import as_double, make_batch, make_layout

layouts = st.builds(
    make_layout,
    user=st.integers(0, 2),
    context=st.integers(0, 1),
    item=st.integers(2, 3),
    candidate=st.integers(0, 2),
    tags=st.booleans(),
    dense=st.booleans(),
    lengths=st.sampled_from([(), (5, 3), (2, 4, 3)]),
    gap=st.booleans(),
    position=st.booleans(),
    tasks=st.integers(1, 4),
)
configs = st.builds(
    DCNv2Config,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    structure=st.sampled_from(["parallel", "stacked"]),
    num_cross_layers=st.integers(1, 3),
    cross=st.sampled_from(["full", "mixture"]),
    rank=st.integers(1, 3),
    num_experts=st.integers(1, 3),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config, seed=0):
    torch.manual_seed(seed)
    model = DCNv2(layout, config).eval().double()
    with torch.no_grad():  # tokens and biases large enough to matter
        model.embedding.weight.mul_(50)
        for name, parameter in model.trunk.cross.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return model


def linear(layer, x):
    return layer.weight @ x + layer.bias


def mixture(layer, x, num_experts, rank):
    gates = (layer.down.weight[num_experts * rank :] @ x).exp()
    total = 0
    for k in range(num_experts):
        own = slice(k * rank, (k + 1) * rank)
        low = torch.tanh(layer.core[k].T @ torch.tanh(layer.down.weight[own] @ x))
        total = total + gates[k] / gates.sum() * (layer.up.weight[:, own] @ low + layer.up.bias)
    return total


def over_both(heads):
    """Heads whose first layer is one over the deep and the cross network's outputs side by side."""
    first, *others = heads.own
    num_tasks, _, out_width = first.weight.shape
    of_cross = heads.shared.weight.view(num_tasks, out_width, -1).mT
    joined = SimpleNamespace(weight=torch.cat([first.weight, of_cross], dim=1), bias=first.bias)
    return SimpleNamespace(own=[joined, *others])


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, trunk, num_tasks = WrittenInputs(model, batch), model.trunk, len(model.layout.tasks)
    config = model.config

    def one(r, c):
        x = x0 = torch.cat([*inputs.fields(r, c), *inputs.pooled(r)])
        for layer in trunk.cross.layers:
            is_full = config.cross == "full"
            x = x0 * (linear(layer, x) if is_full else mixture(layer, x, config.num_experts, config.rank)) + x
        if config.structure == "stacked":
            deep = layers_written_out(trunk.rest, linear(trunk.first, x)).clamp(min=0)
            return heads_written_out(model.heads, deep.expand(num_tasks, -1))
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        first = input_linear_written_out(trunk.first, tokens, request=inputs.pooled(r))
        deep = layers_written_out(trunk.rest, first).clamp(min=0)
        return heads_written_out(over_both(model.heads), torch.cat([deep, x]).expand(num_tasks, -1))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=25)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("cross", ["full", "mixture"])
def test_every_parameter_is_used(structure, cross):
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, DCNv2Config(embedding_width=3, structure=structure, cross=cross))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("structure", "both"), ("cross", "low-rank"), ("num_cross_layers", 0), ("rank", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(SpecError, match=rf"model 'dcnv2', {setting}.*found") as error:
        build_model("dcnv2", make_layout(), {setting: value})
    assert "\n" not in str(error.value)
