import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_out import layouts, make_model

from infnet.errors import SpecError
from infnet.export.bundle import serving_network
from infnet.export.networks import _SERVED
from infnet.models import INFNet, INFNetConfig, build_model, model_names
from random_batches import make_layout
from random_dataset import write_random_dataset

NUM_ROWS = 24
EVERYTHING = make_layout(
    tags=True, dense=True, rich_sides=("user", "context", "item", "candidate"), lengths=(6, 4), gap=True, position=True
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
    head_hidden=st.sampled_from([(), (6,)]),
    event_combine=st.sampled_from(["sum", "concat"]),
    event_position=st.booleans(),
    event_gap=st.booleans(),
    gate_with=st.sampled_from(["input", "updated", "none"]),
    proxy_residual=st.booleans(),
    token_residual=st.booleans(),
    proxy_norm=st.booleans(),
)
OF_ABLATIONS = [("attention", "mean", "softmax"), ("proxies", "all", "few"), ("history", "pooled", "tokens")]
pages = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=70)
@given(layout=layouts(), config=configs, pages=pages, seed=st.integers(0, 99))
def test_infnet_behind_tables_is_infnet(compare, tmp_path_factory, layout, config, pages, seed):
    dataset = write_random_dataset(tmp_path_factory.mktemp("data"), layout, num_rows=NUM_ROWS, seed=seed)
    compare(make_model(INFNet, layout, config, seed).float(), dataset).assert_agree(pages)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return write_random_dataset(tmp_path_factory.mktemp("data"), EVERYTHING, num_rows=NUM_ROWS)


@pytest.fixture(scope="module")
def without_histories(tmp_path_factory):
    layout = make_layout(tags=True, dense=True, lengths=())
    return write_random_dataset(tmp_path_factory.mktemp("data"), layout, num_rows=NUM_ROWS)


def lengths_of(dataset):
    """(n, F) past events of every row that its model sees."""
    rows = dataset.rows("train")
    starts = np.stack([history.starts[rows.user] for history in dataset.histories], axis=1)
    return np.minimum(rows.ends - starts, [behaviour.length for behaviour in dataset.layout.behaviours])


@pytest.mark.parametrize("config", [INFNetConfig(), INFNetConfig.paper()])
def test_histories_of_any_lengths_are_read(compare, rich, config):
    lengths = lengths_of(rich)
    assert {0, 4, 6} <= set(lengths.ravel().tolist())
    whole = lengths.sum(axis=1).argsort(kind="stable")
    compared = compare(make_model(INFNet, EVERYTHING, config).float(), rich)
    compared.assert_agree([[row] for row in whole])
    compared.assert_agree([[row, *range(3)] for row in whole[-2:]])


@pytest.mark.parametrize("sign", [-1, 1])
def test_large_tokens_do_not_overflow(compare, rich, sign):
    model = make_model(INFNet, EVERYTHING, INFNetConfig(), scale=sign * 3e5).float()
    compare(model, rich).assert_agree([range(4), range(9, 3, -1)], tolerance=1e-2)


@pytest.mark.parametrize("settings", [{}, {"event_combine": "sum"}])
@pytest.mark.parametrize("name", sorted(_SERVED))
def test_every_other_model_that_is_served_is_itself(compare, rich, name, settings):
    model = build_model(name, EVERYTHING, {"width": 8, "embedding_std": 1.0} | settings)
    few, many = np.split(np.arange(NUM_ROWS), [6])
    compare(model, rich).assert_agree([*few[:, None], many, many[::-1], few])


@pytest.mark.parametrize("name", ["infnet", *sorted(_SERVED)])
def test_a_dataset_without_histories_is_served(compare, without_histories, name):
    model = build_model(name, without_histories.layout, {"width": 8, "embedding_std": 1.0})
    compare(model, without_histories).assert_agree([range(4), range(9, 3, -1)])


@pytest.mark.parametrize("name", sorted({*model_names()} - _SERVED - {"infnet"}))
def test_a_model_that_is_not_served_is_refused_with_those_that_are(name):
    with pytest.raises(SpecError, match=f"model '{name}' cannot be exported; those that can: infnet, .*shared_bottom"):
        serving_network(build_model(name, EVERYTHING), padded=False)


@pytest.mark.parametrize(("setting", "found", "wanted"), OF_ABLATIONS)
def test_infnet_for_ablations_is_refused_with_what_to_train(setting, found, wanted):
    message = f"infnet with {setting} '{found}' is for ablations and cannot be exported; train it with '{wanted}'"
    with pytest.raises(SpecError, match=re.escape(message)):
        serving_network(build_model("infnet", EVERYTHING, {setting: found}), padded=False)
