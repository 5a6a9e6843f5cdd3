import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out
from model_checks import assert_refused
from multi_head_oracle import attended, layer_norm
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.rankmixer import RankMixer, RankMixerConfig, mix_tokens
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    RankMixerConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    num_tokens=st.sampled_from([3, 4]),
    token_width=st.just(12),
    num_blocks=st.integers(1, 2),
    ffn_factor=st.integers(1, 2),
    head_hidden=st.sampled_from([(), (6,)]),
)


def model_of(layout, config=None, seed=0):
    return make_model(RankMixer, layout, config or RankMixerConfig(width=8, num_tokens=4, token_width=8), seed)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def chunks_written_out(module, values):
    """Values (w,) cut into as many equal chunks as there are projections."""
    weight, bias = module.project.weight, module.project.bias
    width = weight.shape[1]
    padded = torch.cat([values, values.new_zeros(len(weight) * width - len(values))])
    return [padded[i * width : (i + 1) * width] @ weight[i] + bias[i] for i in range(len(weight))]


def block_written_out(block, tokens):
    num_tokens, head_width = len(tokens), len(tokens[0]) // len(tokens)
    first, second = block.ffn[0], block.ffn[-1]
    out = []
    for h in range(num_tokens):
        head = torch.cat([token[h * head_width : (h + 1) * head_width] for token in tokens])
        mixed = layer_norm(block.mixed_norm, head + tokens[h])
        hidden = gelu(mixed @ first.weight[h] + first.bias[h])
        out.append(layer_norm(block.norm, hidden @ second.weight[h] + second.bias[h] + mixed))
    return out


def interest_written_out(model, inputs, r, c):
    """What the candidate reads from all events as one of each behaviour's."""
    query, key, value = (w[0] for w in (model.interest.query, model.interest.key, model.interest.value))
    events = [token for history in inputs.histories[r] for token in history]
    targets = inputs.targets(r, c)
    if not events:
        return [torch.zeros_like(target) for target in targets]
    keys, values = [event @ key for event in events], [event @ value for event in events]
    return [attended(target @ query, keys, values, 1) for target in targets]


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        has_events = model.interest is not None
        groups = [
            (model.request, [*inputs.request(r), *(inputs.pooled(r) if has_events else [])]),
            (model.item, inputs.item(r, c)),
            (model.own, [*inputs.own(r, c), *(interest_written_out(model, inputs, r, c) if has_events else [])]),
        ]
        tokens = [token for cut, fields in groups if fields for token in chunks_written_out(cut, torch.cat(fields))]
        for block in model.blocks:
            tokens = block_written_out(block, tokens)
        return heads_written_out(model.heads, torch.stack(tokens).mean(0).expand(num_tasks, -1))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 3), N=st.integers(1, 2), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


@given(num_tokens=st.integers(1, 5), head_width=st.integers(1, 3), seed=st.integers(0, 99))
def test_mixing_moves_the_h_th_piece_of_token_t_to_the_t_th_place_of_token_h(num_tokens, head_width, seed):
    tokens = torch.randn(2, 3, num_tokens, num_tokens * head_width, generator=torch.Generator().manual_seed(seed))
    mixed = mix_tokens(tokens)
    for t in range(num_tokens):
        for h in range(num_tokens):
            piece = tokens[..., t, h * head_width : (h + 1) * head_width]
            assert torch.equal(mixed[..., h, t * head_width : (t + 1) * head_width], piece)
    assert torch.equal(mix_tokens(mixed), tokens)


def test_mixing_has_no_parameters():
    block = model_of(make_layout()).blocks[0]
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"mixed_norm", "norm", "ffn"}


def test_each_token_has_a_network_of_its_own():
    block, tokens = model_of(make_layout()).blocks[0], torch.randn(5, 4, 8, dtype=torch.float64)
    before = block(tokens)
    with torch.no_grad():
        block.ffn[0].weight[2] += 1
    changed = (block(tokens) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [False, False, True, False]


def test_the_widest_group_of_inputs_gets_the_next_token_and_nobody_goes_without():
    layout = make_layout(user=7, context=2, item=6, candidate=1, lengths=(5, 3))
    model = model_of(layout, RankMixerConfig(width=8))
    # 9 fields and 2 means, 6 fields, 1 field and 2 interests in 16 tokens: nobody's token holds more than 11 / 8 of one
    assert [len(part.project.weight) for part in (model.request, model.item, model.own)] == [8, 5, 3]
    model = model_of(make_layout(user=60, context=0, item=2, candidate=0, lengths=()), RankMixerConfig(width=8))
    assert [len(part.project.weight) for part in (model.request, model.item)] == [15, 1]
    assert model.own is None


@pytest.mark.parametrize(("setting", "value"), [("num_tokens", 2), ("num_blocks", 0)])
def test_settings_that_do_not_fit_are_refused(setting, value):
    assert_refused("rankmixer", setting, value)


def test_tokens_that_do_not_divide_the_token_width_are_refused():
    with pytest.raises(SpecError, match="token_width 64 is not divisible by num_tokens 12"):
        build_model("rankmixer", make_layout(), {"num_tokens": 12})
