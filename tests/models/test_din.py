import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models.base import build_model
from infnet.models.din import DIN, DINConfig
from random_batches import as_double, make_batch, make_layout

layouts = st.builds(
    make_layout,
    user=st.integers(0, 2),
    context=st.integers(0, 1),
    candidate=st.integers(0, 1),
    tags=st.booleans(),
    dense=st.booleans(),
    lengths=st.sampled_from([(), (1,), (4, 3), (2, 3, 2)]),
    gap=st.booleans(),
    position=st.booleans(),
    tasks=st.integers(1, 3),
)
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
    torch.manual_seed(seed)
    model = DIN(layout, config or DINConfig(width=4, hidden=(9, 7))).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(100)
        for extra in [] if model.inputs.events is None else [*model.inputs.events.position, *model.inputs.events.gap]:
            extra.mul_(100)
    return model


def read(attention, target, events):
    """What one candidate reads from one history."""
    if not events:
        return torch.zeros_like(target)
    weights = []
    for event in events:
        x = attention.first(torch.cat([event, target, event - target, event * target]))
        for layer in attention.rest:
            x = layer.linear(torch.where(x >= 0, x, layer.slope * x))
        weights.append(x)
    stacked = torch.stack(weights)  # (n, 1)
    return ((stacked.softmax(dim=0) if attention.normalize else stacked) * torch.stack(events)).sum(dim=0)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        targets = inputs.targets(r, c) if model.layout.behaviours else []
        interests = [read(*each) for each in zip(model.attention, targets, inputs.histories[r], strict=True)]
        first = input_linear_written_out(model.first, tokens, candidate=interests)
        shared = layers_written_out(model.rest, first).clamp(min=0)
        return heads_written_out(model.heads, shared.expand(num_tasks, -1))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-7, atol=1e-8)


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


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, DINConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and not p.grad.to_dense().any()] == []


@pytest.mark.parametrize("setting", ["hidden", "attention_hidden"])
@pytest.mark.parametrize("widths", [[], [0], [16, -1]])
def test_layers_without_units_are_refused(setting, widths):
    with pytest.raises(SpecError, match=f"model 'din', {setting}"):
        build_model("din", make_layout(), {setting: widths})
