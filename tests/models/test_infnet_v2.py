import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from infnet_oracle import attend, category_proxies, heads_of, sequence_proxies
from inputs_oracle import WrittenInputs
from model_checks import assert_close_in_bfloat16, assert_refused
from torch.testing import assert_close
from written_out import assert_equals, every_candidate, gradients, layouts, make_model, parameters_of

from infnet.errors import SpecError
from infnet.models import INFNetV2, INFNetV2Config, build_model
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    INFNetV2Config,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    num_blocks=st.integers(1, 3),
    num_cat_hubs=st.integers(1, 4),
    num_seq_hubs=st.integers(1, 2),
    num_shared_tasks=st.integers(1, 3),
    num_heads=st.sampled_from([1, 2]),
    cat_hidden=st.sampled_from([(), (6,), (6, 5)]),
    cat_skip=st.booleans(),
    seq_hidden=st.sampled_from([(), (6,)]),
    broadcast_hidden=st.sampled_from([(), (6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
    event_combine=st.sampled_from(["sum", "concat"]),
    event_position=st.booleans(),
)


def model_of(layout, config=None, seed=0):
    return make_model(INFNetV2, layout, config or INFNetV2Config(width=8), seed)


def written_out(model, batch):
    """Logits (R, N, T): every candidate by itself, its tokens rewritten in every block."""
    inputs = WrittenInputs(model, batch)
    return every_candidate(batch, lambda r, c: one(model, inputs, r, c))


def one(model, inputs, r, c):
    d, histories = model.config.width, inputs.histories[r]
    C = torch.stack(inputs.fields(r, c))
    S = [torch.stack(events) if events else C.new_zeros(0, d) for events in histories]
    T = model.task_tokens
    C_hubs = model.norms["cat"](
        category_proxies(model.cat_hubs, inputs.request(r), inputs.item(r, c) + inputs.own(r, c))
    )
    T_hubs = model.norms["shared"](model.shared_tokens)
    S_hubs = [torch.full((1, d), torch.nan)] * len(S)  # it would show if anybody read them
    if model.seq_hubs is not None:
        S_hubs = [model.norms["seq"](sequence_proxies(model.seq_hubs, events)) for events in histories]
    for index, block in enumerate(model.blocks):

        def aggregated(kind, hubs, *views, block=block):
            read = [attend(block.arrows[f"{kind}_from_{view}"], hubs, X) for view, X in views if X is not None]
            merge = block.merges[kind]
            return block.norms[kind](
                hubs + torch.cat(read, dim=1) @ torch.cat(list(merge.weights), dim=1).T + merge.bias
            )

        def broadcast(kind, X, hubs, group=0, block=block):
            x = hubs.reshape(-1)
            for i, layer in enumerate(block.broadcasts[kind].layers):
                x = (x.clamp(min=0) if i else x) @ layer.weight[group] + layer.bias[group]
            return X * torch.sigmoid(x[:d]) + x[d:]

        events = torch.cat(S) if S else None
        T_read = attend(block.arrows["task_from_cat"], T, C)
        if S:
            T_read = T_read + attend(block.arrows["task_from_seq"], T, events)
        C_hubs = aggregated("cat", C_hubs, ("cat", C), ("seq", events), ("task", T))
        T_hubs = aggregated("shared", T_hubs, ("cat", C), ("seq", events), ("task", T))
        if index < len(model.blocks) - 1:
            S_hubs = [
                aggregated("seq", hubs, ("own", X), ("seq", events), ("task", T))
                for hubs, X in zip(S_hubs, S, strict=True)
            ]
            C = broadcast("cat", C, C_hubs)
            S = [broadcast("seq", X, hubs, f) for f, (X, hubs) in enumerate(zip(S, S_hubs, strict=True))]
        T = broadcast("shared", T_read, T_hubs)
    return heads_of(model.heads, T, C_hubs.reshape(-1))


@settings(max_examples=40, deadline=None)
@given(
    layout=layouts(gap=st.just(True)), config=configs, R=st.integers(1, 5), N=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_equals_tokens_rewritten_in_every_block(layout, config, R, N, seed):
    assert_equals(model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


def test_nobody_elses_history_is_read_where_there_is_none():
    layout = make_layout(gap=True)
    model, batch = model_of(layout), as_double(make_batch(layout, 1, 2))
    assert not batch.history_present.any()
    logits = model(batch)
    assert_close(logits, written_out(model, batch))
    assert all(g.isfinite().all() for g in gradients(logits, list(parameters_of(model).values())))


def test_events_carry_their_place_and_the_time_since_them():
    model = model_of(make_layout())
    assert model.layout.has_gaps
    assert all(behaviour.position for behaviour in model.layout.behaviours)


def test_bfloat16_autocast_stays_close():
    layout = make_layout(lengths=(9, 4, 6))
    config = INFNetV2Config(width=8, event_position=False, event_gap=False)
    assert_close_in_bfloat16(model_of(layout, config).float(), make_batch(layout, 4, 3))


def test_bad_settings_are_refused():
    with pytest.raises(SpecError, match="no setting 'num_cat_hub'; did you mean 'num_cat_hubs'"):
        build_model("infnet_v2", make_layout(), {"num_cat_hub": 3})
    with pytest.raises(SpecError, match="width 10 is not divisible by num_heads 4"):
        build_model("infnet_v2", make_layout(), {"width": 10, "num_heads": 4})
    assert_refused("infnet_v2", "num_shared_tasks", 0)
