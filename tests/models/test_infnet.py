import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from infnet_oracle import written_out
from model_checks import assert_candidates_score_as_single_rows, assert_close_in_bfloat16, assert_refused
from torch.testing import assert_close
from written_out import assert_equals, gradients, layouts, make_model, parameters_of

from infnet.data.batch import RequestBatch
from infnet.errors import SpecError
from infnet.models import INFNet, INFNetConfig, build_model
from random_batches import as_double, make_batch, make_layout


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


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts(),
    config=configs,
    R=st.integers(1, 5),
    N=st.integers(1, 3),
    chunk_size=st.sampled_from([1, 2, 512]),
    seed=st.integers(0, 99),
)
def test_equals_the_equations_written_out(layout, config, R, N, chunk_size, seed):
    model = make_model(INFNet, layout, config, seed)
    if model.inputs.events is not None:
        model.inputs.events.chunk_size = chunk_size
    assert_equals(model, as_double(make_batch(layout, R, N, seed)), written_out)


@pytest.mark.parametrize("config", [INFNetConfig(), INFNetConfig.paper()])
def test_equals_the_equations_in_single_precision(config):
    layout = make_layout(user=5, item=6, lengths=(9, 4, 6))
    model, batch = make_model(INFNet, layout, config).float(), make_batch(layout, 4, 3)
    assert_close(model(batch), written_out(model, batch), rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_stays_close():
    layout = make_layout(user=5, item=6, lengths=(9, 4, 6))
    assert_close_in_bfloat16(make_model(INFNet, layout, INFNetConfig()).float(), make_batch(layout, 4, 3))


def test_candidates_of_one_request_score_as_single_rows():
    layout = make_layout(tags=True, dense=True, gap=True)
    model = make_model(INFNet, layout, INFNetConfig())
    assert_candidates_score_as_single_rows(model, as_double(make_batch(layout, 3, 4)))


def test_absent_events_are_invisible():
    layout = make_layout(gap=True, position=True)
    model, batch = make_model(INFNet, layout, INFNetConfig()), as_double(make_batch(layout, 5, 2))
    other = torch.randint_like(batch.history, int(batch.event_ids.shape[0]))
    values = {n: getattr(batch, n) for n in batch.__dataclass_fields__}
    values["history"] = torch.where(batch.history_present, batch.history, other)
    assert_close(model(batch), model(RequestBatch(**values)))


def test_a_user_without_history_scores_finite_with_finite_gradients():
    layout = make_layout()
    model, batch = make_model(INFNet, layout, INFNetConfig.paper()), as_double(make_batch(layout, 1, 2))
    assert not batch.history_present.any()
    logits = model(batch)
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(logits, list(parameters_of(model).values())))


def test_a_misspelt_setting_suggests_the_nearest():
    with pytest.raises(SpecError, match="no setting 'num_block'; did you mean 'num_blocks'"):
        build_model("infnet", make_layout(), {"num_block": 3})
    with pytest.raises(SpecError, match="unknown model 'infnt'; did you mean 'infnet'"):
        build_model("infnt", make_layout())
    assert_refused("infnet", "num_blocks", 0)
    with pytest.raises(SpecError, match="heads have no task token to read: set head_reads 'task\\+proxies'"):
        build_model("infnet", make_layout(), {"task_fusion": "none", "head_reads": "task"})
    with pytest.raises(SpecError, match="not divisible by num_heads"):
        build_model("infnet", make_layout(), {"width": 10, "num_heads": 4})
