import pytest
import torch
from experts_oracle import assert_same_function, extraction_written_out, mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.din_dcnv2_ple import DINDCNv2PLE, DINDCNv2PLEConfig
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
    DINDCNv2PLEConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    attention_hidden=st.sampled_from([(5,), (5, 4)]),
    num_cross_layers=st.integers(1, 2),
    cross_rank=st.integers(1, 3),
    num_cross_experts=st.integers(1, 3),
    num_levels=st.integers(1, 2),
    num_specific=st.integers(0, 2),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,)]),
)


def model_of(layout, config, seed=0):
    torch.manual_seed(seed)
    model = DINDCNv2PLE(layout, config).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(50)
    return model


def attended(attention, target, events):
    """The events' sum, each weighted by a network that sees it beside the target."""
    out = torch.zeros_like(target)
    for event in events:
        joined = torch.cat([event, target, event - target, event * target])
        x = attention.first.weight @ joined + attention.first.bias
        for layer in attention.rest:
            x = layer.linear.weight @ torch.where(x > 0, x, layer.slope * x) + layer.linear.bias
        out = out + x * event
    return out


def crossed(cross, x0):
    x = x0
    for layer in cross.layers:
        num_experts, rank, _ = layer.core.shape
        down = layer.down.weight @ x
        experts = []
        for k in range(num_experts):
            own = slice(k * rank, (k + 1) * rank)
            low = torch.tanh(torch.tanh(down[own]) @ layer.core[k])
            experts.append(x0 * (layer.up.weight[:, own] @ low + layer.up.bias))
        x = mixed(experts, down[num_experts * rank :]) + x
    return x


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        targets = inputs.targets(r, c) if model.layout.behaviours else []
        interests = [attended(*of) for of in zip(model.attention, targets, inputs.histories[r], strict=True)]
        x = crossed(model.cross, torch.cat([*inputs.fields(r, c), *interests]))
        first, gates = (
            input_linear_written_out(layer, tokens, candidate=[*interests, x]) for layer in (model.first, model.gates)
        )
        return heads_written_out(model.heads, extraction_written_out(model.extraction, first, gates))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    parameters = [p for p in model.parameters() if p.numel()]
    assert_same_function(model(batch), written_out(model, batch), parameters)


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, DINDCNv2PLEConfig(embedding_width=3, num_levels=2, attention_hidden=(6, 5)))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("attention_hidden", []), ("num_cross_layers", 0), ("cross_rank", 0), ("num_levels", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(SpecError, match=rf"model 'din_dcnv2_ple', {setting}.*found") as error:
        build_model("din_dcnv2_ple", make_layout(), {setting: value})
    assert "\n" not in str(error.value)
