import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, shared_bottom_written_out
from model_checks import assert_refused
from target_attention_oracle import interest_written_out
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.din import DIN, DINConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    DINConfig,
    width=st.sampled_from([3, 4]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    attention_hidden=st.sampled_from([(3,), (4, 2)]),
    attention_softmax=st.booleans(),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (5,)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(DIN, layout, config or DINConfig(width=4, hidden=(9, 7)), seed)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, normalize = WrittenInputs(model, batch), model.config.attention_softmax

    def one(r, c):
        of_behaviours = zip(model.attention, inputs.targets(r, c), inputs.histories[r], strict=True)
        interests = [interest_written_out(*of, normalize) for of in of_behaviours]
        return shared_bottom_written_out(model, inputs.sides(r, c), candidate=interests)

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def test_with_equal_weights_it_pools_sums():
    layout = make_layout(gap=True)
    model, batch = model_of(layout), as_double(make_batch(layout, 4, 2))
    for attention in model.attention:
        torch.nn.init.zeros_(attention.rest[-1].linear.weight)
        torch.nn.init.ones_(attention.rest[-1].linear.bias)
    tokens = model.tokens(batch)
    counts = torch.stack(
        [here.sum(1) for here in batch.history_present.split([b.length for b in layout.behaviours], 1)]
    )
    sums = (tokens.events.means() * counts.T[..., None]).flatten(1)
    shared = model.rest(model.first(tokens, candidate=sums[:, None].expand(-1, 2, -1)))
    assert_close(model(batch), model.heads(shared[..., None, :].expand(-1, -1, len(layout.tasks), -1)))


@pytest.mark.parametrize("setting", ["hidden", "attention_hidden"])
@pytest.mark.parametrize("widths", [[], [0], [16, -1]])
def test_layers_without_units_are_refused(setting, widths):
    assert_refused("din", setting, widths)
