import pytest
import torch
from experts_oracle import experts_written_out, mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out
from model_checks import assert_refused
from torch import nn
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models import SharedBottom, SharedBottomConfig
from infnet.models.mmoe import MMoE, MMoEConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    MMoEConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_experts=st.integers(1, 4),
    hidden=st.sampled_from([(6,), (6, 5), (6, 5, 4)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        sides, pooled = inputs.sides(r, c), inputs.pooled(r)
        first, gates = (input_linear_written_out(x, sides, pooled) for x in (model.first, model.gates))
        experts = experts_written_out(model.experts, first)
        return heads_written_out(model.heads, torch.stack([mixed(experts, gate) for gate in gates.chunk(num_tasks)]))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(make_model(MMoE, layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def test_one_expert_is_shared_bottom():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = make_model(MMoE, layout, MMoEConfig(num_experts=1)), as_double(make_batch(layout, 5, 3))
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
    model, batch = make_model(MMoE, layout, MMoEConfig()), as_double(make_batch(layout, 4, 2))
    before = model(batch)
    with torch.no_grad():
        model.gates.linear.bias[4:8] += torch.tensor([1.0, 0.0, 0.0, -1.0])  # the second task's
    assert (model(batch) != before).any(dim=(0, 1)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("hidden", [0]), ("num_experts", 0), ("head_hidden", [-1])],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("mmoe", setting, value)
