import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from torch.nn import functional as F
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import hstu
from infnet.models.base import build_model
from infnet.models.hstu import HSTU, HSTUConfig, HSTULayer
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
    HSTUConfig,
    width=st.sampled_from([2, 4]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([1, 2]),
    max_events=st.sampled_from([1, 2, 50]),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (5,)]),
)


def model_of(layout, config=None, seed=0):
    torch.manual_seed(seed)
    model = HSTU(layout, config or HSTUConfig(width=4, hidden=(9, 7))).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases, a bias that tells places apart
        model.embedding.weight.mul_(100)
        for extra in [] if model.inputs.events is None else [*model.inputs.events.position, *model.inputs.events.gap]:
            extra.mul_(100)
        for name, parameter in model.named_parameters():
            if "norm" in name or (name.startswith("behaviours") and "position" in name):
                parameter.uniform_(0.5, 1.5)
    return model


def layer_written_out(layer, sequence):
    """Oldest first, each item sees itself and those before it: (k, d) -> (k, d)."""
    width = sequence.shape[1]
    head_width, gates, reads = width // layer.num_heads, [], []
    parts = []
    for x in sequence:
        normed = layer.norm(x)
        value, key = F.silu(layer.seen(normed)).chunk(2)
        gate, query = F.silu(layer.seeing(normed)).chunk(2)
        gates.append(gate)
        parts.append((value, query, key))
    for i, (_, query, _) in enumerate(parts):
        read = torch.zeros_like(query)
        for j, (value, _, key) in enumerate(parts[: i + 1]):
            for head in range(layer.num_heads):
                here = slice(head * head_width, (head + 1) * head_width)
                weight = F.silu(query[here] @ key[here] + layer.position[i - j]) / len(layer.position)
                read = read + F.pad(weight * value[here], (here.start, width - here.stop))
        reads.append(read)
    out = [layer.second(layer.read_norm(read) * gate) for read, gate in zip(reads, gates, strict=True)]
    return sequence + torch.stack(out)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time, the history encoded anew for each."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def read(layers, target, events):
        sequence = torch.stack([*events[: model.config.max_events][::-1], target])
        for layer in layers:
            sequence = layer_written_out(layer, sequence)
        return sequence[-1]

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        targets = inputs.targets(r, c) if model.layout.behaviours else []
        reads = [read(*each) for each in zip(model.behaviours, targets, inputs.histories[r], strict=True)]
        first = input_linear_written_out(model.first, tokens, candidate=reads)
        shared = layers_written_out(model.rest, first).clamp(min=0)
        return heads_written_out(model.heads, shared.expand(num_tasks, -1))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=20)
@given(layout=layouts, config=configs, R=st.integers(1, 4), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-6, atol=1e-7)


def layer_and_inputs():
    torch.manual_seed(0)
    layer = HSTULayer(width=4, num_heads=2, max_events=6, dropout=0.0).double()
    targets, tokens = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    return layer, targets, tokens, torch.arange(5) < torch.tensor([[5], [3], [0]])


def test_newer_events_and_candidates_change_no_older_event():
    layer, targets, tokens, present = layer_and_inputs()
    _, events = layer(targets, tokens, present)
    other = torch.cat([torch.randn(3, 2, 4, dtype=torch.float64), tokens[:, 2:]], dim=1)
    _, changed = layer(torch.randn_like(targets), other, present)
    assert torch.equal(changed[:, 2:], events[:, 2:])
    assert (changed[:2, :2] != events[:2, :2]).any(dim=-1).all()


def test_a_candidate_reads_every_event_and_no_other_candidate():
    layer, targets, tokens, present = layer_and_inputs()
    out, _ = layer(targets, tokens, present)
    assert_close(layer(targets[:, 1:], tokens, present)[0], out[:, 1:])
    for column in range(5):
        other = tokens.clone()
        other[:, column] += torch.randn(4, dtype=torch.float64)
        changed = (layer(targets, other, present)[0] != out).any(dim=-1)
        assert torch.equal(changed, present[:, column, None].expand(-1, 2))


def test_the_last_layer_leaves_events_alone():
    layer, targets, tokens, present = layer_and_inputs()
    out, events = layer(targets, tokens, present, with_tokens=False)
    assert torch.equal(events, tokens)
    assert torch.equal(out, layer(targets, tokens, present)[0])


def test_what_is_not_seen_weighs_nothing_to_the_last_bit():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        score = torch.tensor(hstu._UNSEEN + math.pi, dtype=dtype, requires_grad=True)
        weight = F.silu(score)
        weight.backward()
        assert (weight.item(), score.grad.item()) == (0.0, 0.0)


def test_chunks_of_similar_length_change_nothing(monkeypatch):
    layout = make_layout(gap=True)
    model, batch = model_of(layout), as_double(make_batch(layout, 9, 2))
    together = model(batch)
    monkeypatch.setattr(hstu, "_CHUNK_SIZE", 2)
    assert_close(model(batch), together, rtol=1e-9, atol=1e-9)


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, HSTUConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and not p.grad.to_dense().any()] == []


@pytest.mark.parametrize(("setting", "value"), [("num_layers", 0), ("max_events", 0), ("hidden", [])])
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(SpecError, match=f"model 'hstu', {setting}"):
        build_model("hstu", make_layout(), {setting: value})


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(SpecError, match="width 8 is not divisible by num_heads 3"):
        build_model("hstu", make_layout(), {"width": 8, "num_heads": 3})
