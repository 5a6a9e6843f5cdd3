import pytest
import torch
from cross_oracle import after_the_cross_network
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs
from model_checks import assert_refused
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.gdcn import GDCN, GDCNConfig
from random_batches import as_double, make_batch

configs = st.builds(
    GDCNConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    structure=st.sampled_from(["parallel", "stacked"]),
    num_cross_layers=st.integers(1, 3),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config, seed=0):
    model = make_model(GDCN, layout, config, seed, scale=50)
    with torch.no_grad():  # biases large enough to matter
        for bias in model.trunk.cross.biases:
            bias.normal_()
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, network = WrittenInputs(model, batch), model.trunk.cross

    def one(r, c):
        x = x0 = torch.cat([*inputs.fields(r, c), *inputs.pooled(r)])
        for layer, bias in zip(network.layers, network.biases, strict=True):
            cross, gate = layer.weight[: len(x)], layer.weight[len(x) :]
            x = x0 * (cross @ x + bias) / (1 + (-(gate @ x)).exp()) + x
        return after_the_cross_network(model, inputs, r, c, x)

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.mark.parametrize(("setting", "value"), [("hidden", []), ("structure", "both"), ("num_cross_layers", 0)])
def test_impossible_settings_are_refused(setting, value):
    assert_refused("gdcn", setting, value)
