import pytest
import torch
from cross_oracle import after_the_cross_network, mixture_written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs
from model_checks import assert_refused
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.dcnv2 import DCNv2, DCNv2Config
from random_batches import as_double, make_batch

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
    model = make_model(DCNv2, layout, config, seed, scale=50)
    with torch.no_grad():  # biases large enough to matter
        for name, parameter in model.trunk.cross.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, config = WrittenInputs(model, batch), model.config

    def crossed(layer, x):
        if config.cross == "full":
            return layer.weight @ x + layer.bias
        return mixture_written_out(layer, x, config.num_experts, config.rank)

    def one(r, c):
        x = x0 = torch.cat([*inputs.fields(r, c), *inputs.pooled(r)])
        for layer in model.trunk.cross.layers:
            x = x0 * crossed(layer, x) + x
        return after_the_cross_network(model, inputs, r, c, x)

    return every_candidate(batch, one)


@settings(max_examples=25)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("structure", "both"), ("cross", "low-rank"), ("num_cross_layers", 0), ("rank", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("dcnv2", setting, value)
