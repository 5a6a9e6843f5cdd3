import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, input_linear_written_out, layers_written_out, shared_bottom_written_out
from model_checks import assert_blind_to_candidates, assert_refused, first_output_of, full_batch
from multi_head_oracle import attended, layer_norm
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.longer import Longer, LongerConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    LongerConfig,
    width=st.just(4),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    event_position=st.booleans(),
    merge=st.integers(1, 3),
    inner_transformer=st.booleans(),
    token_width=st.just(6),
    num_recent=st.integers(1, 2),
    num_cls=st.integers(1, 2),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([1, 3]),
    ffn_factor=st.integers(1, 2),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(Longer, layout, config or LongerConfig(width=8, token_width=8, hidden=(9, 7)), seed)


class WrittenBlock:
    """One transformer block, token by token."""

    def __init__(self, block):
        self.block = block

    def projected(self, tokens):
        normed = [layer_norm(self.block.norm, token) for token in tokens]
        width = len(tokens[0])
        joined = [self.block.key_value.weight @ token for token in normed]
        return (
            [self.block.query.weight @ token for token in normed],
            [x[:width] for x in joined],
            [x[width:] for x in joined],
        )

    def updated(self, token, query, keys, values):
        block = self.block
        token = token + block.out.weight @ attended(query, keys, values, block.num_heads) + block.out.bias
        hidden = block.ffn[0].weight @ layer_norm(block.ffn_norm, token) + block.ffn[0].bias
        return token + layers_written_out(list(block.ffn)[1:], hidden)


def merged_written_out(merge, history):
    """One behaviour's events, most recent first, as merged tokens."""
    tokens = []
    for at in range(0, len(history), merge.merge):
        group = history[at : at + merge.merge]
        if merge.inner is not None:
            block = WrittenBlock(merge.inner)
            queries, keys, values = block.projected(group)
            group = [block.updated(t, q, keys, values) for t, q in zip(group, queries, strict=True)]
        padding = torch.zeros(merge.project.in_features - sum(map(len, group)), dtype=group[0].dtype)
        tokens.append(merge.project.weight @ torch.cat([*group, padding]) + merge.project.bias)
    return tokens


def globals_written_out(model, inputs, r, c):
    """What the request's global tokens and the candidate's hold in the end: two lists."""
    reader = model.reader
    target = input_linear_written_out(reader.target, inputs.sides(r, c))
    tokens = list(reader.cls)
    if reader.user is not None:
        tokens.append(reader.user.weight @ torch.cat(inputs.request(r)) + reader.user.bias)
    stays, num_globals = [True] * len(tokens), len(tokens)
    for history in inputs.histories[r]:
        merged = merged_written_out(reader.history, history)
        tokens += merged
        stays += [rank < model.config.num_recent for rank in range(len(merged))]
    for block in map(WrittenBlock, reader.blocks):
        queries, keys, values = block.projected(tokens)
        (own_query,), own_keys, own_values = block.projected([target])
        target = block.updated(target, own_query, own_keys + keys, own_values + values)
        # Newest first: a token sees itself and those after it.
        after = [block.updated(t, queries[i], keys[i:], values[i:]) for i, t in enumerate(tokens)]
        tokens = [token for token, stay in zip(after, stays, strict=True) if stay]
        stays = [True] * len(tokens)
    return [layer_norm(reader.norm, token) for token in tokens[:num_globals]], [layer_norm(reader.norm, target)]


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)

    def one(r, c):
        request, candidate = ([], []) if model.reader is None else globals_written_out(model, inputs, r, c)
        return shared_bottom_written_out(model, inputs.sides(r, c), request, candidate)

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 3), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.fixture
def layout_and_batch():
    """Two behaviours of 8 and 4 events, all there; three candidates a request."""
    layout = make_layout(lengths=(8, 4))
    return layout, full_batch(layout, 5, 3)


def states_after_the_first_layer(model, batch):
    """Of CLS and user, then of the three most recent merged tokens of each behaviour: (R, 2 + 5, D)."""
    return first_output_of(model.reader.blocks[0], model, batch)


def test_a_newer_event_changes_no_older_token(layout_and_batch):
    layout, batch = layout_and_batch
    model = model_of(layout, LongerConfig(width=8, merge=2, num_recent=3))
    before = states_after_the_first_layer(model, batch)
    batch.history[:, 2] = (batch.history[:, 2] + 1) % len(batch.event_ids)  # in the first behaviour's second pair
    changed = (states_after_the_first_layer(model, batch) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [True, True, True, True, False, False, False]


def test_the_candidates_change_nothing_of_the_request(layout_and_batch):
    layout, batch = layout_and_batch
    model = model_of(layout)
    assert_blind_to_candidates(model.reader.blocks[0], model, batch)


def test_every_event_reaches_the_scores_however_few_stay(layout_and_batch):
    layout, batch = layout_and_batch
    model = model_of(layout, LongerConfig(width=8, merge=2, num_recent=1))
    before = model(batch)
    batch.history[:, 7] = (batch.history[:, 7] + 1) % len(batch.event_ids)
    assert (model(batch) != before).all()


@pytest.mark.parametrize(("setting", "value"), [("merge", 0), ("hidden", [])])
def test_settings_that_do_not_fit_are_refused(setting, value):
    assert_refused("longer", setting, value)


def test_heads_that_do_not_divide_the_token_width_are_refused():
    with pytest.raises(SpecError, match="token_width 32 is not divisible by num_heads 3"):
        build_model("longer", make_layout(), {"num_heads": 3})
