import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from multi_head_oracle import attended, layer_norm
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.longer import Longer, LongerConfig
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
    torch.manual_seed(seed)
    model = Longer(layout, config or LongerConfig(width=8, token_width=8, hidden=(9, 7))).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(100)
    return model


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
    target = input_linear_written_out(reader.target, [inputs.request(r), inputs.item(r, c), inputs.own(r, c)])
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
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        request, candidate = ([], []) if model.reader is None else globals_written_out(model, inputs, r, c)
        first = input_linear_written_out(model.first, tokens, request=request, candidate=candidate)
        shared = layers_written_out(model.rest, first).clamp(min=0)
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


@pytest.fixture
def full_batch():
    """Two behaviours of 8 and 4 events, all there; three candidates a request."""
    layout = make_layout(lengths=(8, 4))
    batch = as_double(make_batch(layout, 5, 3))
    batch.history_present[:] = True
    return layout, batch


def states_after_the_first_layer(model, batch):
    """Of CLS and user, then of the three most recent merged tokens of each behaviour: (R, 2 + 5, D)."""
    states = []
    handle = model.reader.blocks[0].register_forward_hook(lambda module, inputs, outputs: states.append(outputs[0]))
    model(batch)
    handle.remove()
    return states[0]


def test_a_newer_event_changes_no_older_token(full_batch):
    layout, batch = full_batch
    model = model_of(layout, LongerConfig(width=8, merge=2, num_recent=3))
    before = states_after_the_first_layer(model, batch)
    batch.history[:, 2] = (batch.history[:, 2] + 1) % len(batch.event_ids)  # in the first behaviour's second pair
    changed = (states_after_the_first_layer(model, batch) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [True, True, True, True, False, False, False]


def test_the_candidates_change_nothing_of_the_request(full_batch):
    layout, batch = full_batch
    model = model_of(layout)
    before = states_after_the_first_layer(model, batch)
    batch.candidate_item[:] = (batch.candidate_item + 1) % len(batch.item.ids)
    batch.candidate.ids[:] = batch.candidate.ids.flip(0)
    assert torch.equal(states_after_the_first_layer(model, batch), before)


def test_every_event_reaches_the_scores_however_few_stay(full_batch):
    layout, batch = full_batch
    model = model_of(layout, LongerConfig(width=8, merge=2, num_recent=1))
    before = model(batch)
    batch.history[:, 7] = (batch.history[:, 7] + 1) % len(batch.event_ids)
    assert (model(batch) != before).all()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_every_parameter_is_used(num_layers):
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, LongerConfig(embedding_width=3, num_layers=num_layers))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "token_width 32 is not divisible by num_heads 3"),
        ({"merge": 0}, "merge"),
        ({"hidden": []}, "hidden"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        build_model("longer", make_layout(), settings)
