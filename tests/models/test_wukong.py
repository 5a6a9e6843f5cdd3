import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, layers_written_out
from model_checks import assert_refused
from multi_head_oracle import layer_norm
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.wukong import Wukong, WukongConfig
from random_batches import as_double, make_batch, make_layout

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
    model = make_model(Wukong, layout, config, seed, scale=50)
    with torch.no_grad():  # norms that do more than normalise
        for layer in model.layers:
            for norm in (layer.norm, layer.norm_pairs):
                norm.weight.normal_()
                norm.bias.normal_()
    return model


def layer_written_out(layer, tokens, config):
    """Tokens [(d,)] -> [(d,)]."""
    num_out = config.num_fm_tokens + config.num_linear_tokens
    y, lcb = layer.compress[: config.rank].T, layer.compress[config.rank :][: config.num_linear_tokens]
    inner = torch.stack([torch.stack([a @ b for b in tokens]) for a in tokens])  # X X^t, every pair
    pairs = layer_norm(layer.norm_pairs, (inner @ y).flatten())
    first, *rest = layer.mlp
    made = layers_written_out(rest, first.weight @ pairs + first.bias)
    made = list(made.view(config.num_fm_tokens, config.width))
    made += [sum(w * token for w, token in zip(weights, tokens, strict=True)) for weights in lcb]
    kept = tokens
    if len(tokens) != num_out:
        residual = layer.compress[-num_out:]
        kept = [sum(w * token for w, token in zip(weights, tokens, strict=True)) for weights in residual]
    return [layer_norm(layer.norm, new + old) for new, old in zip(made, kept, strict=True)]


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [*inputs.fields(r, c), *inputs.pooled(r)]
        for layer in model.layers:
            tokens = layer_written_out(layer, tokens, model.config)
        return heads_written_out(model.heads, torch.cat(tokens).expand(num_tasks, -1))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 3), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    assert_equals(model, batch, written_out, rtol=1e-6, atol=1e-7)


def test_as_many_tokens_as_a_layer_gives_are_added_to_them_as_they_are():
    layout = make_layout(user=1, context=1, item=2, candidate=1, lengths=(5, 3))  # 5 fields and 2 behaviours
    model = model_of(layout, WukongConfig(width=4, num_fm_tokens=4, num_linear_tokens=3, rank=2, fm_hidden=(6,)))
    assert {layer.compress.shape for layer in model.layers} == {(2 + 3, 7)}
    assert_equals(model, as_double(make_batch(layout, 3, 2)), written_out, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("setting", ["num_layers", "num_fm_tokens", "num_linear_tokens", "rank"])
def test_layers_that_make_nothing_are_refused(setting):
    assert_refused("wukong", setting, 0)
