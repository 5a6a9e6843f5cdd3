import pytest
import torch
from experts_oracle import experts_written_out, mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs_oracle import WrittenInputs, heads_written_out
from model_checks import assert_refused
from written_out import assert_equals, every_candidate, layouts, make_model

from infnet.models.stem import STEM, STEMConfig
from random_batches import as_double, make_batch, make_layout

configs = st.builds(
    STEMConfig,
    width=st.sampled_from([2, 4]),
    num_shared=st.integers(1, 3),
    num_specific=st.integers(1, 2),
    hidden=st.sampled_from([(6,), (6, 5)]),
    head_hidden=st.sampled_from([(), (6,)]),
)


def written_out(model, batch):
    """Logits (R, N, T), one candidate and one task at a time."""
    inputs, config, num_tasks = WrittenInputs(model, batch), model.config, len(model.layout.tasks)
    d = config.width

    def linear(layer, group, x):
        return x @ torch.cat([weight[group] for weight in layer.weights]) + layer.bias[group]

    def one(r, c):
        tokens = [*inputs.request(r), *inputs.pooled(r), *inputs.item(r, c), *inputs.own(r, c)]
        *own, shared = (torch.cat([token[s * d : (s + 1) * d] for token in tokens]) for s in range(num_tasks + 1))
        first = [linear(model.specific, task, own[task]) for task in range(num_tasks)]
        experts = experts_written_out(model.experts, torch.cat([*first, linear(model.shared, 0, shared)]))

        def chosen(task):
            is_reached = [
                e // config.num_specific == task or e >= num_tasks * config.num_specific for e in range(len(experts))
            ]
            read = [x if reached else x.detach() for x, reached in zip(experts, is_reached, strict=True)]
            return mixed(read, linear(model.gates, task, own[task] + shared))

        return heads_written_out(model.heads, torch.stack([chosen(task) for task in range(num_tasks)]))

    return every_candidate(batch, one)


@settings(max_examples=20)
@given(layout=layouts(), config=configs, R=st.integers(1, 4), N=st.integers(1, 3), seed=st.integers(0, 99))
def test_equals_the_network_written_out(layout, config, R, N, seed):
    assert_equals(make_model(STEM, layout, config, seed), as_double(make_batch(layout, R, N, seed)), written_out)


T, WIDTH = 3, 4


@pytest.fixture
def trained():
    layout = make_layout(tags=True, dense=True, gap=True, position=True, tasks=T)
    model = make_model(STEM, layout, STEMConfig(width=WIDTH, num_shared=1, num_specific=2, hidden=(6, 5)))
    return model, as_double(make_batch(layout, 6, 3))


@pytest.mark.parametrize("task", range(T))
def test_a_tasks_loss_trains_its_own_and_the_shared_parts_alone(trained, task):
    model, batch = trained
    model(batch)[..., task].square().sum().backward()
    trained_slices = [slice_ in (task, T) for slice_ in range(T + 1)]
    trained_experts = [True if e == 2 * T else e // 2 == task for e in range(2 * T + 1)]
    table = model.embedding.weight.grad.to_dense()
    of_slices = [table, *(p.grad for name, p in model.inputs.named_parameters() if p.numel())]
    for gradient in of_slices:
        by_slice = gradient if gradient.shape[-1] == WIDTH * (T + 1) else gradient.T  # a dense field's weights
        by_slice = by_slice.reshape(-1, T + 1, WIDTH)
        assert (by_slice != 0).any(dim=2).any(dim=0).tolist() == trained_slices
    for layer in model.experts.layers:
        for parameter in layer.parameters():
            assert (parameter.grad.flatten(1) != 0).any(dim=1).tolist() == trained_experts
    for layer in (model.specific, model.gates):
        for parameter in layer.parameters():
            assert (parameter.grad.flatten(1) != 0).any(dim=1).tolist() == trained_slices[:T]


def test_a_task_sees_what_the_other_tasks_embeddings_say(trained):
    model, batch = trained
    before = model(batch)
    with torch.no_grad():
        model.embedding.weight[:, :WIDTH] += torch.randn(WIDTH, dtype=torch.float64)  # the first task's
    assert (model(batch) != before).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden", []),
        ("num_shared", 0),
        ("num_specific", 0),
        ("event_combine", "concat"),
        ("embedding_width", 8),
    ],
)
def test_impossible_settings_are_refused(setting, value):
    assert_refused("stem", setting, value)
