import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, shared_bottom_written_out
from model_checks import assert_refused
from written_out import (
    assert_equals,
    assert_same_function,
    every_candidate,
    layouts,
    make_model,
    parameters_of,
)

from infnet.models.dien import DIEN, DIENConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    DIENConfig,
    width=st.sampled_from([3, 4]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    max_events=st.sampled_from([1, 2, 20]),
    auxiliary_weight=st.sampled_from([0.5, 1.0]),
    dropout=st.just(0.0),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (5,)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(DIEN, layout, config or DIENConfig(width=4, hidden=(9, 7), dropout=0.0), seed)


def extract(gru, events):
    """State of the extractor after each event, oldest first."""
    state, states = torch.zeros_like(events[0]), []
    for event in events:
        r_in, z_in, n_in = (gru.weight_ih_l0 @ event + gru.bias_ih_l0).chunk(3)
        r_state, z_state, n_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).chunk(3)
        reset, keep = torch.sigmoid(r_in + r_state), torch.sigmoid(z_in + z_state)
        state = (1 - keep) * torch.tanh(n_in + reset * n_state) + keep * state
        states.append(state)
    return states


def interest(parts, target, events):
    """Final interest of one candidate, events oldest first."""
    state = torch.zeros_like(target)
    if not events:
        return state
    states = extract(parts.extractor.gru, events)
    attention = torch.stack([h @ parts.match.weight @ target for h in states]).softmax(dim=0)
    for weight, inputs in zip(attention, states, strict=True):
        u_in, r_in, n_in = (parts.evolution.input.weight @ inputs + parts.evolution.input.bias).chunk(3)
        u_state, r_state, n_state = (parts.evolution.state.weight @ state).chunk(3)
        update, reset = weight * torch.sigmoid(u_in + u_state), torch.sigmoid(r_in + r_state)
        state = (1 - update) * state + update * torch.tanh(n_in + reset * n_state)
    return state


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs = WrittenInputs(model, batch)
    histories = [[h[: model.config.max_events][::-1] for h in request] for request in inputs.histories]

    def one(r, c):
        of_behaviours = zip(model.behaviours, inputs.targets(r, c), histories[r], strict=True)
        return shared_bottom_written_out(model, inputs.sides(r, c), candidate=[interest(*of) for of in of_behaviours])

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def drawn(model, batch, seed):
    """The event drawn instead of the one that follows, by behaviour: (R, n - 1) positions in ``event_ids``."""
    torch.manual_seed(seed)
    at, out, num_events = 0, [], len(batch.event_ids)
    for behaviour in model.layout.behaviours:
        columns = slice(at, at + behaviour.length)
        at += behaviour.length
        longest = max(1, int(batch.history_present[:, columns].sum(1).max()))
        following = batch.history[:, columns][:, : min(longest, model.config.max_events) - 1].long()
        out.append((following + torch.randint(1, num_events, following.shape)) % num_events)
    return out


def auxiliary_written_out(model, batch, seed):
    """Eq. 6, one pair of neighbouring events at a time."""
    inputs, losses = WrittenInputs(model, batch), []
    table = model.tokens(batch).events.table
    num_events = len(batch.event_ids)
    for a, (parts, others) in enumerate(zip(model.behaviours, drawn(model, batch, seed), strict=True)):
        first = 0 if len(table) == num_events else a * num_events
        at = sum(b.length for b in model.layout.behaviours[:a])
        for r in range(batch.num_requests):
            events = inputs.histories[r][a][: model.config.max_events][::-1]
            states = extract(parts.extractor.gru, events) if events else []
            for t in range(len(events) - 1):
                column = len(events) - 2 - t  # of the event that follows
                real = table[first + int(batch.history[r, at + column])]
                other = table[first + int(others[r, column])]
                losses.append(-(states[t] @ real).sigmoid().log() - (1 - (states[t] @ other).sigmoid()).log())
    return model.config.auxiliary_weight * torch.stack([*losses, table.sum() * 0]).sum() / max(len(losses), 1)


@settings(max_examples=20)
@given(
    layout=layouts().filter(lambda layout: layout.behaviours),
    config=configs,
    R=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_the_auxiliary_loss_equals_its_formula(layout, config, R, seed):
    model, batch = model_of(layout, config, seed).train(), as_double(make_batch(layout, R, 2, seed))
    torch.manual_seed(seed)
    model(batch)
    parameters = list(parameters_of(model).values())
    assert_same_function(model.auxiliary_loss(), auxiliary_written_out(model, batch, seed), parameters)


def test_the_auxiliary_loss_is_for_training_alone():
    layout = make_layout()
    batch = as_double(make_batch(layout, 6, 2))
    model = model_of(layout)
    trained, scored = model.train()(batch), model.eval()(batch)
    assert model.auxiliary_loss() is None
    assert torch.equal(trained, scored)


@pytest.mark.parametrize(("lengths", "weight"), [((), 1.0), ((5, 3), 0.0)])
def test_without_behaviours_or_weight_there_is_no_auxiliary_loss(lengths, weight):
    layout = make_layout(lengths=lengths)
    model = model_of(layout, DIENConfig(width=4, auxiliary_weight=weight)).train()
    model(as_double(make_batch(layout, 6, 2)))
    assert model.auxiliary_loss() is None


def test_a_seed_draws_the_same_events():
    layout = make_layout()
    model, batch = model_of(layout).train(), as_double(make_batch(layout, 6, 2))

    def loss(seed):
        torch.manual_seed(seed)
        model(batch)
        return model.auxiliary_loss().item()

    assert loss(1) == loss(1) != loss(2)


def test_the_extractor_learns_what_follows():
    layout = make_layout(lengths=(5,))
    torch.manual_seed(0)
    model, batch = DIEN(layout, DIENConfig(width=8, embedding_std=0.1, auxiliary_weight=1.0)), make_batch(layout, 16, 1)
    batch.history[:] = (batch.history[:, :1] - torch.arange(5)) % 7  # each event is followed by the next number
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(80):
        model(batch)
        model.zero_grad()
        model.auxiliary_loss().backward()
        optimizer.step()
        losses.append(model.auxiliary_loss().item())
    assert losses[0] == pytest.approx(2 * math.log(2), rel=0.01)
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


@pytest.mark.parametrize(("setting", "value"), [("max_events", 0), ("auxiliary_weight", -1.0), ("hidden", [])])
def test_settings_out_of_range_are_refused(setting, value):
    assert_refused("dien", setting, value)
