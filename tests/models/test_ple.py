import pytest
import torch
from experts_oracle import assert_same_function, extraction_written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.mmoe import MMoE, MMoEConfig
from infnet.models.ple import PLE, PLEConfig
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
    PLEConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_levels=st.integers(1, 3),
    num_shared=st.integers(1, 3),
    num_specific=st.integers(0, 2),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,)]),
)


def model_of(layout, config, seed=0):
    torch.manual_seed(seed)
    model = PLE(layout, config).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(50)
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        first, gates = (input_linear_written_out(x, tokens, inputs.pooled(r)) for x in (model.first, model.gates))
        return heads_written_out(model.heads, extraction_written_out(model.extraction, first, gates))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    parameters = [p for p in model.parameters() if p.numel()]
    assert_same_function(model(batch), written_out(model, batch), parameters)


def test_without_experts_of_the_tasks_own_it_is_mmoe():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = model_of(layout, PLEConfig(num_shared=3, num_specific=0)), as_double(make_batch(layout, 5, 3))
    mixture = MMoE(layout, MMoEConfig(num_experts=3)).eval().double()
    for part in ("embedding", "inputs", "first", "gates", "heads"):
        getattr(mixture, part).load_state_dict(getattr(model, part).state_dict())
    mixture.experts.load_state_dict(model.extraction.levels[0].experts.state_dict())
    assert_close(model(batch), mixture(batch), rtol=1e-13, atol=1e-13)


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, PLEConfig(embedding_width=3, num_levels=2))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("num_levels", 0), ("num_shared", 0), ("num_specific", -1), ("head_hidden", [0])],
)
def test_impossible_settings_are_refused(setting, value):
    with pytest.raises(SpecError, match=rf"model 'ple', {setting}.*found") as error:
        build_model("ple", make_layout(), {setting: value})
    assert "\n" not in str(error.value)
