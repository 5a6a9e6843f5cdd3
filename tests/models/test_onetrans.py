import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from model_checks import assert_blind_to_candidates, assert_refused, first_output_of, full_batch
from multi_head_oracle import attended
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.onetrans import OneTrans, OneTransConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    OneTransConfig,
    width=st.just(4),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    event_position=st.booleans(),
    token_width=st.just(6),
    num_field_tokens=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    num_recent=st.integers(1, 4),
    num_heads=st.sampled_from([1, 3]),
    ffn_factor=st.integers(1, 2),
    head_hidden=st.sampled_from([(), (6,)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(OneTrans, layout, config or OneTransConfig(width=8, token_width=8, num_field_tokens=3), seed)


def rms_norm(norm, x):
    return x / (x.square().mean().sqrt() + 1e-6) * norm.weight


def num_kept(config, length, layer):
    """Events of a behaviour that are left after a layer, counted from 1: from its length to num_recent in the last."""
    dropped = max(length - config.num_recent, 0)
    return length - dropped * layer // (config.num_layers - 1)


def ffn_of_events(ffn, x):
    return layers_written_out(list(ffn)[1:], ffn[0].weight @ x + ffn[0].bias)


def ffn_of_field(ffn, index, x):
    first, last = ffn[0], ffn[-1]
    return (x @ first.weight[index] + first.bias[index]).clamp(min=0) @ last.weight[index] + last.bias[index]


def fields_after_all_blocks(model, inputs, r, c, shrinks):
    """NS-tokens, with all S-tokens kept at every layer unless ``shrinks``."""
    config, sequence = model.config, model.sequence
    width, heads = config.token_width, config.num_heads
    flat = input_linear_written_out(model.fields, inputs.sides(r, c))
    fields = list(flat.split(width))
    events, kept_until = [], []  # newest first
    for behaviour, history in zip(model.layout.behaviours, inputs.histories[r], strict=True):
        events.append(sequence.separator)
        kept_until.append(config.num_layers)
        for rank, token in enumerate(history):
            events.append(sequence.project.weight @ token + sequence.project.bias)
            left = [rank < num_kept(config, behaviour.length, layer) for layer in range(1, config.num_layers)]
            kept_until.append(1 + sum(left) if shrinks else config.num_layers)
    if not events:
        events, kept_until = [sequence.separator], [config.num_layers]
    for layer, block in enumerate(model.blocks):
        normed = [rms_norm(block.norm, token) for token in events]
        joined = [block.key_value.weight @ token + block.key_value.bias for token in normed]
        keys, values = [x[:width] for x in joined], [x[width:] for x in joined]
        own = block.field_query_key_value
        projected = [rms_norm(block.norm, f) @ own.weight[i] + own.bias[i] for i, f in enumerate(fields)]
        queries, own_keys, own_values = zip(*(x.split(width) for x in projected), strict=True)
        for i, query in enumerate(queries):
            seen = [*keys, *own_keys[: i + 1]], [*values, *own_values[: i + 1]]
            fields[i] = fields[i] + block.out.weight @ attended(query, *seen, heads) + block.out.bias
            fields[i] = fields[i] + ffn_of_field(block.field_ffn, i, rms_norm(block.ffn_norm, fields[i]))
        if layer == config.num_layers - 1:
            break
        staying = [i for i, until in enumerate(kept_until) if until > layer + 1]
        after = []
        for i in staying:
            query = block.query.weight @ normed[i] + block.query.bias
            token = events[i] + block.out.weight @ attended(query, keys[i:], values[i:], heads) + block.out.bias
            after.append(token + ffn_of_events(block.ffn, rms_norm(block.ffn_norm, token)))
        events, kept_until = after, [kept_until[i] for i in staying]
    return [rms_norm(model.norm, field) for field in fields]


def written_out(model, batch, shrinks=True):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        shared = torch.cat(fields_after_all_blocks(model, inputs, r, c, shrinks))
        return heads_written_out(model.heads, shared.expand(num_tasks, -1))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 3), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.mark.parametrize("num_recent", [6, 99])
def test_a_pyramid_that_does_not_shrink_is_the_plain_stack(num_recent):
    layout = make_layout(lengths=(6, 4))
    model = model_of(layout, OneTransConfig(width=8, token_width=8, num_layers=3, num_recent=num_recent))
    batch = as_double(make_batch(layout, 3, 2))
    assert_close(model(batch), written_out(model, batch, shrinks=False), rtol=1e-9, atol=1e-9)


def test_events_drop_out_linearly():
    layout = make_layout(lengths=(50, 20, 5))
    config = OneTransConfig(width=8, num_layers=4, num_recent=8)
    model = model_of(layout, config)
    sequence = model.sequence(model.tokens(full_batch(layout, 3, 1)).events, 3)
    separators = 3
    assert sequence.num_left == [separators + 36 + 16 + 5, separators + 22 + 12 + 5, separators + 8 + 8 + 5, 0]


@pytest.fixture
def layout_and_batch():
    """Two behaviours of 5 and 3 events, all there; three candidates a request."""
    layout = make_layout(lengths=(5, 3))
    return layout, full_batch(layout, 4, 3)


def events_after_the_first_block(model, batch):
    """Separators of both behaviours, then their events, newest first: (R, 2 + 8, D)."""
    return first_output_of(model.blocks[0], model, batch)


def test_a_newer_event_changes_no_older_token(layout_and_batch):
    layout, batch = layout_and_batch
    model = model_of(layout)
    before = events_after_the_first_block(model, batch)
    batch.history[:, 2] = (batch.history[:, 2] + 1) % len(batch.event_ids)
    changed = (events_after_the_first_block(model, batch) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [True, False, True, True, True, False, False, False, False, False]


def test_the_candidates_change_nothing_of_the_events(layout_and_batch):
    layout, batch = layout_and_batch
    model = model_of(layout)
    assert_blind_to_candidates(model.blocks[0], model, batch)


def test_field_tokens_see_the_ones_before_them_in_their_candidate():
    block = model_of(make_layout()).blocks[0]
    events, fields = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 3, 3, 8, dtype=torch.float64)
    visible, present = torch.ones(2, 4, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    before = block(events, visible, present, fields)[1]
    fields[0, 2, 1] += 1
    changed = (block(events, visible, present, fields)[1] != before).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 2, 1], [0, 2, 2]]


@pytest.mark.parametrize(("setting", "value"), [("num_field_tokens", 0), ("num_recent", 0)])
def test_settings_that_do_not_fit_are_refused(setting, value):
    assert_refused("onetrans", setting, value)


def test_heads_that_do_not_divide_the_token_width_are_refused():
    with pytest.raises(SpecError, match="token_width 32 is not divisible by num_heads 3"):
        build_model("onetrans", make_layout(), {"num_heads": 3})
