import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs
from torch.testing import assert_close

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.fm import FM, FMConfig
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


def model_of(layout, width=4, seed=0):
    torch.manual_seed(seed)
    model = FM(layout, FMConfig(width=width, embedding_std=1.0)).eval().double()
    torch.nn.init.normal_(model.bias)
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate, one task and one pair at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def one(r, c, task):
        tokens = [*inputs.fields(r, c), *inputs.pooled(r)]
        mine = [token.view(num_tasks, -1)[task] for token in tokens]
        logit = model.bias[task] + sum(token[-1] for token in mine)
        for j in range(len(mine)):
            for i in range(j):
                logit = logit + mine[i][:-1] @ mine[j][:-1]
        return logit

    R, N = batch.present.shape
    logits = [one(r, c, task) for r in range(R) for c in range(N) for task in range(num_tasks)]
    return torch.stack(logits).view(R, N, num_tasks)


@settings(max_examples=20)
@given(
    layout=layouts,
    width=st.sampled_from([1, 4]),
    R=st.integers(1, 4),
    N=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_the_sum_over_pairs(layout, width, R, N, seed):
    model, batch = model_of(layout, width, seed), as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    parameters = [p for p in model.parameters() if p.numel()]
    weights = torch.linspace(-1, 2, fast.numel(), dtype=torch.float64).view_as(fast)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters, materialize_grads=True) for out in (fast, slow)]
    for mine, plain in zip(*gradients, strict=True):
        assert_close(mine.to_dense(), plain.to_dense(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_a_task_learns_in_its_own_numbers_alone(task):
    layout = make_layout(tags=True, dense=True, gap=True, position=True, tasks=3)
    model = model_of(layout)
    model(as_double(make_batch(layout, 6, 2)))[..., task].square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.numel():
            across = 0 if "dense" in name else -1  # the axis as wide as a token: all tasks' numbers side by side
            by_task = parameter.grad.to_dense().movedim(across, 0).unflatten(0, (3, -1)).flatten(1)
            assert by_task.abs().sum(dim=1).bool().tolist() == [other == task for other in range(3)], name


def test_dense_values_begin_with_factors_as_small_as_those_of_ids():
    layout = make_layout(dense=True, rich_sides=("user", "context", "item", "candidate"))
    torch.manual_seed(0)
    assert build_model("fm", layout)(make_batch(layout, 30, 2)).abs().max() < 0.3


def test_every_parameter_is_used():
    layout = make_layout(tags=True, dense=True, gap=True, position=True)
    model = model_of(layout)
    model(as_double(make_batch(layout, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_width": 8}, "model 'fm', embedding_width: .*leave it out and set width, found 8"),
        ({"event_combine": "concat"}, "model 'fm', event_combine: .*'sum', found 'concat'"),
        ({"hidden": [8]}, "model 'fm' has no setting 'hidden'"),
    ],
)
def test_what_an_fm_does_not_have_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        build_model("fm", make_layout(), settings)
