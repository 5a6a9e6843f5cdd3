import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from infnet_oracle import written_out
from torch.testing import assert_close

from infnet.data.batch import FieldValues, RequestBatch
from infnet.errors import SpecError
from infnet.models import INFNet, INFNetConfig, build_model
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


def make_config(readers, **settings):
    task_fusion, head_reads = readers
    return INFNetConfig(task_fusion=task_fusion, head_reads=head_reads, **settings)


configs = st.builds(
    make_config,
    readers=st.sampled_from(
        [(fusion, head) for fusion in ("early", "late") for head in ("task", "task+proxies")]
        + [("none", "task+proxies")]
    ),
    width=st.sampled_from([4, 8]),
    embedding_width=st.sampled_from([None, 3]),
    proxy_width=st.sampled_from([None, 6, 10]),
    num_blocks=st.integers(1, 3),
    num_cat_proxies=st.integers(1, 4),
    num_seq_proxies=st.integers(1, 2),
    num_shared_tasks=st.integers(0, 3),
    num_heads=st.sampled_from([1, 2]),
    cat_hidden=st.sampled_from([(), (6,), (6, 5)]),
    cat_skip=st.booleans(),
    seq_hidden=st.sampled_from([(), (6,)]),
    gate_hidden=st.sampled_from([(), (6,)]),
    head_hidden=st.sampled_from([(), (6,), (6, 5)]),
    event_combine=st.sampled_from(["sum", "concat"]),
    gate_with=st.sampled_from(["input", "updated", "none"]),
    proxy_residual=st.booleans(),
    token_residual=st.booleans(),
    proxy_norm=st.booleans(),
    attention=st.sampled_from(["softmax", "softmax", "mean"]),
    proxies=st.sampled_from(["few", "few", "all"]),
    history=st.sampled_from(["tokens", "tokens", "pooled"]),
)


def model_of(layout, config, seed=0, dtype=torch.float64) -> INFNet:
    torch.manual_seed(seed)
    model = INFNet(layout, config)
    with torch.no_grad():  # tokens large enough for attention to be far from uniform
        model.embedding.weight.mul_(100)
    return model.eval().to(dtype)


def gradients(model, logits):
    """Of all parameters that hold a number."""
    named = [(name, p) for name, p in model.named_parameters() if p.numel()]
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    found = torch.autograd.grad((logits * weights).sum(), [p for _, p in named], materialize_grads=True)
    return {name: gradient.to_dense() for (name, _), gradient in zip(named, found, strict=True)}


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts,
    config=configs,
    R=st.integers(1, 5),
    N=st.integers(1, 3),
    chunk_size=st.sampled_from([1, 2, 512]),
    seed=st.integers(0, 99),
)
def test_equals_the_equations_written_out(layout, config, R, N, chunk_size, seed):
    model = model_of(layout, config, seed)
    if model.inputs.events is not None:
        model.inputs.events.chunk_size = chunk_size
    batch = as_double(make_batch(layout, R, N, seed))
    fast, slow = model(batch), written_out(model, batch)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    fast_gradients, slow_gradients = gradients(model, fast), gradients(model, slow)
    for name, gradient in slow_gradients.items():
        assert_close(fast_gradients[name], gradient, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("config", [INFNetConfig(), INFNetConfig.paper()])
def test_equals_the_equations_in_single_precision(config):
    layout = make_layout(user=5, item=6, lengths=(9, 4, 6))
    model, batch = model_of(layout, config, dtype=torch.float32), make_batch(layout, 4, 3)
    assert_close(model(batch), written_out(model, batch), rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_stays_close():
    layout = make_layout(user=5, item=6, lengths=(9, 4, 6))
    model, batch = model_of(layout, INFNetConfig(), dtype=torch.float32), make_batch(layout, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch)
    rounded.float().sum().backward()
    assert_close(rounded.float(), model(batch), rtol=0.1, atol=0.1)
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_candidates_of_one_request_score_as_single_rows():
    layout = make_layout(tags=True, dense=True, gap=True)
    model, batch = model_of(layout, INFNetConfig()), as_double(make_batch(layout, 3, 4))
    together = model(batch)
    for r in range(3):
        for c in range(4):
            alone = RequestBatch(
                rows=batch.rows,
                user=FieldValues(batch.user.ids[r : r + 1], batch.user.dense[r : r + 1]),
                context=FieldValues(batch.context.ids[r : r + 1], batch.context.dense[r : r + 1]),
                item=batch.item,
                candidate=FieldValues(
                    batch.candidate.ids[r * 4 + c : r * 4 + c + 1], batch.candidate.dense[r * 4 + c : r * 4 + c + 1]
                ),
                candidate_item=batch.candidate_item[r : r + 1, c : c + 1],
                present=batch.present[r : r + 1, c : c + 1],
                event_ids=batch.event_ids,
                history=batch.history[r : r + 1],
                history_present=batch.history_present[r : r + 1],
                history_gap=batch.history_gap[r : r + 1],
                labels=None,
                user_index=batch.user_index[r : r + 1],
            )
            assert_close(model(alone)[0, 0], together[r, c], rtol=1e-9, atol=1e-9)


def test_absent_events_are_invisible():
    layout = make_layout(gap=True, position=True)
    model, batch = model_of(layout, INFNetConfig()), as_double(make_batch(layout, 5, 2))
    other = torch.randint_like(batch.history, int(batch.event_ids.shape[0]))
    values = {n: getattr(batch, n) for n in batch.__dataclass_fields__}
    values["history"] = torch.where(batch.history_present, batch.history, other)
    assert_close(model(batch), model(RequestBatch(**values)))


def test_a_user_without_history_scores_finite_with_finite_gradients():
    layout = make_layout()
    model, batch = model_of(layout, INFNetConfig.paper()), as_double(make_batch(layout, 1, 2))
    assert not batch.history_present.any()
    logits = model(batch)
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(model, logits).values())


LAYOUT = make_layout(tags=True, dense=True, gap=True, position=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head_reads": "task"},
        {"gate_with": "updated"},
        {"gate_with": "none"},
        {"task_fusion": "late"},
        {"task_fusion": "none"},
        {"attention": "mean"},
        {"proxies": "all"},
        {"history": "pooled"},
        {"num_shared_tasks": 0},
        INFNetConfig.paper().model_dump(),
    ],
    ids=str,
)
def test_every_parameter_is_used(settings):
    model = model_of(LAYOUT, INFNetConfig(**settings))
    model(as_double(make_batch(LAYOUT, 6, 2))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.numel() and p.grad is None] == []


def test_a_misspelt_setting_suggests_the_nearest():
    with pytest.raises(SpecError, match="no setting 'num_block'; did you mean 'num_blocks'"):
        build_model("infnet", make_layout(), {"num_block": 3})
    with pytest.raises(SpecError, match="unknown model 'infnt'; did you mean 'infnet'"):
        build_model("infnt", make_layout())
    with pytest.raises(SpecError, match=r"num_blocks.*found 0"):
        build_model("infnet", make_layout(), {"num_blocks": 0})
    with pytest.raises(SpecError, match="heads have no task token to read: set head_reads 'task\\+proxies'"):
        build_model("infnet", make_layout(), {"task_fusion": "none", "head_reads": "task"})
    with pytest.raises(SpecError, match="not divisible by num_heads"):
        build_model("infnet", make_layout(), {"width": 10, "num_heads": 4})
