import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out, input_linear_written_out, layers_written_out
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import SharedBottom, SharedBottomConfig, build_model
from random_batches import as_double, make_batch, make_layout

layouts = st.builds(
    make_layout,
    user=st.integers(0, 3),
    context=st.integers(0, 2),
    item=st.integers(2, 4),
    candidate=st.integers(0, 2),
    tags=st.booleans(),
    dense=st.booleans(),
    rich_sides=st.sampled_from([("user", "item"), ("user", "context", "item", "candidate")]),
    lengths=st.sampled_from([(), (1,), (5, 3), (2, 4, 3)]),
    gap=st.booleans(),
    position=st.booleans(),
    tasks=st.integers(1, 4),
)
configs = st.builds(
    SharedBottomConfig,
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    event_combine=st.sampled_from(["sum", "concat"]),
    hidden=st.sampled_from([(6,), (6, 5), (6, 5, 4)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
)


def model_of(layout, config=None, seed=0):
    torch.manual_seed(seed)
    model = SharedBottom(layout, config or SharedBottomConfig(hidden=(9, 7))).eval().double()
    with torch.no_grad():  # tokens large enough to matter beside the biases
        model.embedding.weight.mul_(100)
        for extra in [] if model.inputs.events is None else [*model.inputs.events.position, *model.inputs.events.gap]:
            extra.mul_(100)
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c):
        tokens = [inputs.request(r), inputs.item(r, c), inputs.own(r, c)]
        first = input_linear_written_out(model.first, tokens, request=inputs.pooled(r))
        shared = layers_written_out(model.rest, first).clamp(min=0)
        return heads_written_out(model.heads, shared.expand(num_tasks, -1))

    R, N = batch.present.shape
    return torch.stack([torch.stack([one(r, c) for c in range(N)]) for r in range(R)])


@settings(max_examples=40)
@given(layout=layouts, config=configs, R=st.integers(1, 5), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    model, batch = model_of(layout, config, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-7, atol=1e-8)


def test_candidates_of_one_request_score_as_single_rows():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = model_of(layout), as_double(make_batch(layout, 3, 4))
    together = model(batch)
    for r in range(3):
        for c in range(4):
            at = r * 4 + c
            alone = dataclasses.replace(
                batch,
                **{
                    side: dataclasses.replace(values, ids=values.ids[i : i + 1], dense=values.dense[i : i + 1])
                    for side, values, i in (
                        ("user", batch.user, r),
                        ("context", batch.context, r),
                        ("candidate", batch.candidate, at),
                    )
                },
                candidate_item=batch.candidate_item[r : r + 1, c : c + 1],
                present=batch.present[r : r + 1, c : c + 1],
                **{
                    n: getattr(batch, n)[r : r + 1] for n in ("history", "history_present", "history_gap", "user_index")
                },
            )
            assert_close(model(alone)[0, 0], together[r, c], rtol=1e-9, atol=1e-9)


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout, SharedBottomConfig(embedding_width=3))
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize("hidden", [[], [0], [16, -1]])
def test_layers_without_units_are_refused(hidden):
    with pytest.raises(SpecError, match="model 'shared_bottom', hidden"):
        build_model("shared_bottom", make_layout(), {"hidden": hidden})
