import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, shared_bottom_written_out
from model_checks import assert_refused
from torch.nn import functional as F
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.errors import SpecError
from infnet.models import hstu
from infnet.models.base import build_model
from infnet.models.hstu import HSTU, HSTUConfig, HSTULayer
from random_batches import as_double, make_batch, make_layout

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
    model = make_model(HSTU, layout, config or HSTUConfig(width=4, hidden=(9, 7)), seed)
    with torch.no_grad():  # a bias that tells places apart
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
    inputs = WrittenInputs(model, batch)

    def read(layers, target, events):
        sequence = torch.stack([*events[: model.config.max_events][::-1], target])
        for layer in layers:
            sequence = layer_written_out(layer, sequence)
        return sequence[-1]

    def one(r, c):
        of_behaviours = zip(model.behaviours, inputs.targets(r, c), inputs.histories[r], strict=True)
        return shared_bottom_written_out(model, inputs.sides(r, c), candidate=[read(*of) for of in of_behaviours])

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    assert_equals(model, batch, written_out, rtol=1e-6, atol=1e-7)


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


@pytest.mark.parametrize(("setting", "value"), [("num_layers", 0), ("max_events", 0), ("hidden", [])])
def test_settings_out_of_range_are_refused(setting, value):
    assert_refused("hstu", setting, value)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(SpecError, match="width 8 is not divisible by num_heads 3"):
        build_model("hstu", make_layout(), {"width": 8, "num_heads": 3})
