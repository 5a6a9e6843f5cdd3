import pytest
import torch
from cross_oracle import mixture_written_out
from experts_oracle import extraction_written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out
from model_checks import assert_refused
from target_attention_oracle import interest_written_out
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.din_dcnv2_ple import DINDCNv2PLE, DINDCNv2PLEConfig
from random_batches import as_double, make_batch

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


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, config = WrittenInputs(model, batch), model.config

    def crossed(x0):
        x = x0
        for layer in model.cross.layers:
            x = x0 * mixture_written_out(layer, x, config.num_cross_experts, config.cross_rank) + x
        return x

    def one(r, c):
        of_behaviours = zip(model.attention, inputs.targets(r, c), inputs.histories[r], strict=True)
        interests = [interest_written_out(*of) for of in of_behaviours]
        further = [*interests, crossed(torch.cat([*inputs.fields(r, c), *interests]))]
        sides = inputs.sides(r, c)
        first, gates = (input_linear_written_out(x, sides, candidate=further) for x in (model.first, model.gates))
        return heads_written_out(model.heads, extraction_written_out(model.extraction, first, gates))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model = make_model(DINDCNv2PLE, layout, config, seed, scale=50)
    assert_equals(model, as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("attention_hidden", []), ("num_cross_layers", 0), ("cross_rank", 0), ("num_levels", 0)],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("din_dcnv2_ple", setting, value)
