import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from multi_head_oracle import attended
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.onetrans import OneTrans, OneTransConfig
from random_batches import as_double, make_batch, make_layout

layouts = st.builds(
    make_layout,
    user=st.integers(0, 2),
    context=st.integers(0, 1),
    item=st.integers(2, 3),
    candidate=st.integers(0, 1),
    tags=st.booleans(),
    lengths=st.sampled_from([(), (1,), (6, 3), (2, 5, 3)]),
    gap=st.booleans(),
    tasks=st.integers(1, 3),
)
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
    torch.manual_seed(seed)
    model = OneTrans(layout, config or OneTransConfig(width=8, token_width=8, num_field_tokens=3)).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(100)
    return model


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
    flat = input_linear_written_out(model.fields, [inputs.request(r), inputs.item(r, c), inputs.own(r, c)])
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

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 3), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("num_recent", [6, 99])
def test_a_pyramid_that_does_not_shrink_is_the_plain_stack(num_recent):
    layout = make_layout(lengths=(6, 4))
    model = model_of(layout, OneTransConfig(width=8, token_width=8, num_layers=3, num_recent=num_recent))
    batch = as_double(make_batch(layout, 3, 2))
    assert_close(model(batch), written_out(model, batch, shrinks=False), rtol=1e-9, atol=1e-9)


def test_events_drop_out_linearly():
    layout = make_layout(lengths=(50, 20, 5))
    config = OneTransConfig(width=8, num_layers=4, num_recent=8)
    batch = as_double(make_batch(layout, 3, 1))
    batch.history_present[:] = True
    model = model_of(layout, config)
    sequence = model.sequence(model.tokens(batch).events, 3)
    separators = 3
    assert sequence.num_left == [separators + 36 + 16 + 5, separators + 22 + 12 + 5, separators + 8 + 8 + 5, 0]


@pytest.fixture
def full_batch():
    """Two behaviours of 5 and 3 events, all there; three candidates a request."""
    layout = make_layout(lengths=(5, 3))
    batch = as_double(make_batch(layout, 4, 3))
    batch.history_present[:] = True
    return layout, batch


def events_after_the_first_block(model, batch):
    """Separators of both behaviours, then their events, newest first: (R, 2 + 8, D)."""
    states = []
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, outputs: states.append(outputs[0]))
    model(batch)
    handle.remove()
    return states[0]


def test_a_newer_event_changes_no_older_token(full_batch):
    layout, batch = full_batch
    model = model_of(layout)
    before = events_after_the_first_block(model, batch)
    batch.history[:, 2] = (batch.history[:, 2] + 1) % len(batch.event_ids)
    changed = (events_after_the_first_block(model, batch) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [True, False, True, True, True, False, False, False, False, False]


def test_the_candidates_change_nothing_of_the_events(full_batch):
    layout, batch = full_batch
    model = model_of(layout)
    before = events_after_the_first_block(model, batch)
    batch.candidate_item[:] = (batch.candidate_item + 1) % len(batch.item.ids)
    batch.candidate.ids[:] = batch.candidate.ids.flip(0)
    assert torch.equal(events_after_the_first_block(model, batch), before)


def test_field_tokens_see_the_ones_before_them_in_their_candidate():
    block = model_of(make_layout()).blocks[0]
    events, fields = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 3, 3, 8, dtype=torch.float64)
    visible, present = torch.ones(2, 4, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    before = block(events, visible, present, fields)[1]
    fields[0, 2, 1] += 1
    changed = (block(events, visible, present, fields)[1] != before).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 2, 1], [0, 2, 2]]


@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_is_used(num_layers):
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, OneTransConfig(embedding_width=3, num_layers=num_layers))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "token_width 32 is not divisible by num_heads 3"),
        ({"num_field_tokens": 0}, "num_field_tokens"),
        ({"num_recent": 0}, "num_recent"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        build_model("onetrans", make_layout(), settings)
