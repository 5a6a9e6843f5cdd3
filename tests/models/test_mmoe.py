import pytest
import torch
from experts_oracle import assert_same_function, experts_written_out, mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out
from torch import nn
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import SharedBottom, SharedBottomConfig, build_model
from infnet.models.mmoe import MMoE, MMoEConfig
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
    MMoEConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_experts=st.integers(1, 4),
    hidden=st.sampled_from([(6,), (6, 5), (6, 5, 4)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config, seed=0):
    torch.manual_seed(seed)
    model = MMoE(layout, config).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(50)
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        first, gates = (input_linear_written_out(x, tokens, inputs.pooled(r)) for x in (model.first, model.gates))
        experts = experts_written_out(model.experts, first)
        return heads_written_out(model.heads, torch.stack([mixed(experts, gate) for gate in gates.chunk(num_tasks)]))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    parameters = [p for p in model.parameters() if p.numel()]
    assert_same_function(model(batch), written_out(model, batch), parameters)


def test_one_expert_is_shared_bottom():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = model_of(layout, MMoEConfig(num_experts=1)), as_double(make_batch(layout, 5, 3))
    bottom = SharedBottom(layout, SharedBottomConfig()).eval().double()
    for part in ("embedding", "inputs", "first", "heads"):
        getattr(model, part).load_state_dict(getattr(bottom, part).state_dict())
    linears = [layer for layer in bottom.rest if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for mine, linear in zip(model.experts.layers, linears, strict=True):
            mine.weight[0], mine.bias[0] = linear.weight.T, linear.bias
    assert_close(model(batch), bottom(batch), rtol=1e-13, atol=1e-13)


def test_a_tasks_gate_moves_its_logit_alone():
    layout = make_layout(tasks=3)
    model, batch = model_of(layout, MMoEConfig()), as_double(make_batch(layout, 4, 2))
    before = model(batch)
    with torch.no_grad():
        model.gates.linear.bias[4:8] += torch.tensor([1.0, 0.0, 0.0, -1.0])  # the second task's
    assert (model(batch) != before).any(dim=(0, 1)).tolist() == [False, True, False]


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, MMoEConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("hidden", [0]), ("num_experts", 0), ("head_hidden", [-1])],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(SpecError, match=rf"model 'mmoe', {setting}.*found") as error:
        build_model("mmoe", make_layout(), {setting: value})
    assert "\n" not in str(error.value)
