import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs
from written_out import assert_equals, every_candidate, layouts

from infnet.errors import SpecError
from infnet.models import build_model
from infnet.models.fm import FM, FMConfig
from random_batches import as_double, make_batch, make_layout


def model_of(layout, width=4, seed=0):
    torch.manual_seed(seed)
    model = FM(layout, FMConfig(width=width, embedding_std=1.0)).eval().double()
    torch.nn.init.normal_(model.bias)
    return model


def written_out(model, batch):
    """Logits (R, N, T), one candidate, one task and one pair at a time."""
    inputs, num_tasks = WrittenInputs(model, batch), len(model.layout.tasks)

    def of_task(tokens, task):
        mine = [token.view(num_tasks, -1)[task] for token in tokens]
        logit = model.bias[task] + sum(token[-1] for token in mine)
        for j in range(len(mine)):
            for i in range(j):
                logit = logit + mine[i][:-1] @ mine[j][:-1]
        return logit

    def one(r, c):
        tokens = [*inputs.fields(r, c), *inputs.pooled(r)]
        return torch.stack([of_task(tokens, task) for task in range(num_tasks)])

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(
    layout=layouts(),
    width=st.sampled_from([1, 4]),
    R=st.integers(1, 4),
    N=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_the_sum_over_pairs(layout, width, R, N, seed):
    assert_equals(model_of(layout, width, seed), as_double(make_batch(layout, R, N, seed)), written_out)


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
