import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, layers_written_out
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.wukong import Wukong, WukongConfig
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
    WukongConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_layers=st.integers(1, 3),
    num_fm_tokens=st.integers(1, 3),
    num_linear_tokens=st.integers(1, 4),
    rank=st.integers(1, 3),
    fm_hidden=st.sampled_from([(), (6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config, seed=0):
    torch.manual_seed(seed)
    model = Wukong(layout, config).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases, norms that do more than normalise
        model.embedding.weight.mul_(50)
        for layer in model.layers:
            for norm in (layer.norm, layer.norm_pairs):
                norm.weight.normal_()
                norm.bias.normal_()
    return model


def normed(norm, x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def layer_written_out(layer, tokens, config):
    """Tokens [(d,)] -> [(d,)]."""
    num_out = config.num_fm_tokens + config.num_linear_tokens
    y, lcb = layer.compress[: config.rank].T, layer.compress[config.rank :][: config.num_linear_tokens]
    inner = torch.stack([torch.stack([a @ b for b in tokens]) for a in tokens])  # X X^t, every pair
    pairs = normed(layer.norm_pairs, (inner @ y).flatten())
    first, *rest = layer.mlp
    made = layers_written_out(rest, first.weight @ pairs + first.bias)
    made = list(made.view(config.num_fm_tokens, config.width))
    made += [sum(w * token for w, token in zip(weights, tokens, strict=True)) for weights in lcb]
    kept = tokens
    if len(tokens) != num_out:
        residual = layer.compress[-num_out:]
        kept = [sum(w * token for w, token in zip(weights, tokens, strict=True)) for weights in residual]
    return [normed(layer.norm, new + old) for new, old in zip(made, kept, strict=True)]


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [*inputs.fields(r, c), *inputs.pooled(r)]
        for layer in model.layers:
            tokens = layer_written_out(layer, tokens, model.config)
        return heads_written_out(model.heads, torch.cat(tokens).expand(num_tasks, -1))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


def assert_equals_written_out(model, batch):
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-6, atol=1e-7)


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 3), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals_written_out(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)))


def test_as_many_tokens_as_a_layer_gives_are_added_to_them_as_they_are():
    layout = make_layout(user=1, context=1, item=2, candidate=1, lengths=(5, 3))  # 5 fields and 2 behaviours
    model = model_of(layout, WukongConfig(width=4, num_fm_tokens=4, num_linear_tokens=3, rank=2, fm_hidden=(6,)))
    assert {layer.compress.shape for layer in model.layers} == {(2 + 3, 7)}
    assert_equals_written_out(model, as_double(make_batch(layout, 3, 2)))


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, WukongConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize("setting", ["num_layers", "num_fm_tokens", "num_linear_tokens", "rank"])
def test_layers_that_make_nothing_are_refused(setting):
    with pytest.raises(SpecError, match=rf"model 'wukong', {setting}: .*found 0") as error:
        build_model("wukong", make_layout(), {setting: 0})
    assert "\n" not in str(error.value)
