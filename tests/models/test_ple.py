import pytest
from experts_oracle import extraction_written_out
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out
from model_checks import assert_refused
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.mmoe import MMoE, MMoEConfig
from infnet.models.ple import PLE, PLEConfig
from random_batches import as_double, make_batch, make_layout

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


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)

    def one(r, c):
        sides, pooled = inputs.sides(r, c), inputs.pooled(r)
        first, gates = (input_linear_written_out(x, sides, pooled) for x in (model.first, model.gates))
        return heads_written_out(model.heads, extraction_written_out(model.extraction, first, gates))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(make_model(PLE, layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def test_without_experts_of_the_tasks_own_it_is_mmoe():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = make_model(PLE, layout, PLEConfig(num_shared=3, num_specific=0)), as_double(make_batch(layout, 5, 3))
    mixture = MMoE(layout, MMoEConfig(num_experts=3)).eval().double()
    for part in ("embedding", "inputs", "first", "gates", "heads"):
        getattr(mixture, part).load_state_dict(getattr(model, part).state_dict())
    mixture.experts.load_state_dict(model.extraction.levels[0].experts.state_dict())
    assert_close(model(batch), mixture(batch), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("hidden", []), ("num_levels", 0), ("num_shared", 0), ("num_specific", -1), ("head_hidden", [0])],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("ple", setting, value)
