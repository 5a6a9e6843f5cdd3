import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, shared_bottom_written_out
from model_checks import assert_candidates_score_as_single_rows, assert_refused
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models import SharedBottom, SharedBottomConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    SharedBottomConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    hidden=st.sampled_from([(6,), (6, 5), (6, 5, 4)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(SharedBottom, layout, config or SharedBottomConfig(hidden=(9, 7)), seed)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)

    def one(r, c):
        return shared_bottom_written_out(model, inputs.sides(r, c), request=inputs.pooled(r))

    return every_candidate(batch, one)


@settings(max_examples=40)
@given(layout=layouts(), config=configs, R=st.integers(1, 5), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def test_candidates_of_one_request_score_as_single_rows():
    layout = make_layout(tags=True, dense=True, gap=True)
    assert_candidates_score_as_single_rows(model_of(layout), as_double(make_batch(layout, 3, 4)))


@pytest.mark.parametrize("hidden", [[], [0], [16, -1]])
def test_layers_without_units_are_refused(hidden):
    assert_refused("shared_bottom", "hidden", hidden)
