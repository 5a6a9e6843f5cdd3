"""What every registered model keeps."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from written_out import parameters_of

from infnet.data.batches import BatchBuilder
from infnet.models import INFNetConfig, build_model, model_names
from random_batches import as_double, make_batch, make_layout
from random_dataset import write_random_dataset

NUM_ROWS = 64
models = pytest.mark.parametrize("name", model_names())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    layout = make_layout(tags=True, dense=True, lengths=(6, 4), gap=True, position=True, tasks=3)
    return write_random_dataset(tmp_path_factory.mktemp("dataset"), layout, num_rows=NUM_ROWS, num_items=20)


@pytest.fixture(scope="module")
def score(dataset):
    builder = BatchBuilder(dataset, dataset.rows("train"))
    built = {}

    def of(name, requests):
        """Logits (R, N, T) of row numbers, one list per request; -1 pads."""
        if name not in built:
            torch.manual_seed(0)
            built[name] = build_model(name, dataset.layout, {"width": 8, "embedding_std": 1.0}).double().eval()
        with torch.no_grad():
            return built[name](as_double(builder.build(np.array(requests))))

    return of


@models
def test_scores_tell_rows_apart(score, name):
    logits = score(name, [[row] for row in range(NUM_ROWS)])[:, 0]
    assert len(logits.round(decimals=9).unique(dim=0)) == NUM_ROWS


@models
@pytest.mark.parametrize("batch_size", [1, 5, 33])
def test_the_other_requests_of_a_batch_change_nothing(score, name, batch_size):
    rows = [[row] for row in range(NUM_ROWS)]
    apart = [score(name, rows[at : at + batch_size]) for at in range(0, NUM_ROWS, batch_size)]
    assert_close(torch.cat(apart), score(name, rows), rtol=1e-9, atol=1e-9)


@models
def test_the_order_of_requests_and_of_candidates_changes_nothing(score, name):
    page = np.arange(NUM_ROWS).reshape(16, 4)
    logits = score(name, page)
    shuffled = np.random.default_rng(0).permutation(16)
    assert_close(score(name, page[shuffled]), logits[shuffled], rtol=1e-9, atol=1e-9)
    # The first row of a page is whose history it has, so it stays the first.
    assert_close(score(name, page[:, [0, 3, 1, 2]]), logits[:, [0, 3, 1, 2]], rtol=1e-9, atol=1e-9)


@models
def test_the_other_candidates_of_a_request_change_nothing(score, name):
    page = np.arange(NUM_ROWS).reshape(16, 4)
    logits = score(name, page)
    assert_close(score(name, page[:, :2]), logits[:, :2], rtol=1e-9, atol=1e-9)
    assert_close(score(name, page[:, [0, 3]]), logits[:, [0, 3]], rtol=1e-9, atol=1e-9)
    assert_close(score(name, page[:, [0, 0, 1, 1]]), logits[:, [0, 0, 1, 1]], rtol=1e-9, atol=1e-9)


@models
def test_padded_candidates_change_nothing_and_score_finite(score, name):
    page = np.arange(NUM_ROWS).reshape(16, 4)
    padded = np.concatenate([page, np.full((16, 3), -1)], axis=1)
    padded[::2, 2:] = -1
    logits = score(name, padded)
    assert logits.isfinite().all()
    real = padded >= 0
    assert_close(logits[real], score(name, page)[real[:, :4]], rtol=1e-9, atol=1e-9)


@models
def test_what_stands_in_padding_is_invisible(name):
    layout = make_layout(tags=True, gap=True, position=True)
    torch.manual_seed(0)
    model = build_model(name, layout, {"width": 8, "embedding_std": 1.0}).double().eval()
    batch = as_double(make_batch(model.layout, 6, 3, padded=True))
    gone, absent = ~batch.present, ~batch.history_present
    other = dataclasses.replace(
        batch,
        candidate_item=torch.where(gone, (batch.candidate_item + 1) % len(batch.item.ids), batch.candidate_item),
        history=torch.where(absent, (batch.history + 1) % len(batch.event_ids), batch.history),
        history_gap=torch.where(absent, (batch.history_gap + 1) % 32, batch.history_gap),
        labels=None,
        user_index=batch.user_index + 5,
    )
    assert_close(model(other)[batch.present], model(batch)[batch.present], rtol=1e-9, atol=1e-9)


def loss_of(logits, batch):
    known = ~batch.labels.isnan() & batch.present[..., None]
    return F.binary_cross_entropy_with_logits(logits[known], batch.labels[known])


@models
@pytest.mark.parametrize(
    "layout",
    [
        make_layout(tags=True, dense=True, gap=True, position=True),
        make_layout(lengths=()),
        make_layout(user=0, context=0, candidate=0, tasks=1),
    ],
    ids=["everything", "no histories", "items alone"],
)
def test_gradients_are_finite_and_reach_the_table(name, layout):
    torch.manual_seed(0)
    model = build_model(name, layout, {"width": 8})
    for num_requests, num_candidates in ((5, 3), (1, 2)):  # the first request has no history: here nobody has one
        batch = make_batch(model.layout, num_requests, num_candidates, padded=True)
        model.zero_grad()
        loss_of(model(batch), batch).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(g.to_dense().isfinite().all() for g in gradients.values())
        table = gradients["embedding.weight"]
        assert table.is_sparse
        assert table._values().abs().sum() > 0


@models
def test_a_batch_in_bfloat16_scores_alike(name):
    layout = make_layout(tags=True, dense=True)
    torch.manual_seed(0)
    model = build_model(name, layout, {"width": 8}).eval()
    batch = make_batch(model.layout, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch).float()
    assert_close(rounded, model(batch), rtol=0.05, atol=0.05)


@models
def test_scores_come_back_from_saved_parameters(name, tmp_path):
    layout = make_layout(tags=True, dense=True, gap=True)
    models = [build_model(name, layout, {"width": 8}).eval() for _ in range(2)]
    batch = make_batch(models[0].layout, 4, 2)
    assert not torch.equal(models[0](batch), models[1](batch))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](batch), models[1](batch))


@models
def test_overfits_32_rows(dataset, name):
    torch.manual_seed(0)
    model = build_model(name, dataset.layout, {"width": 8, "dropout": 0.0})
    batch = BatchBuilder(dataset, dataset.rows("train")).build(np.arange(0, NUM_ROWS, 2)[:, None])
    labels = torch.randint(0, 2, batch.labels.shape).float()  # nothing to learn but the rows themselves
    batch = dataclasses.replace(batch, labels=labels)
    dense = [p for n, p in model.named_parameters() if n != "embedding.weight" and p.numel()]
    optimizers = [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam([model.embedding.weight], lr=0.02)]
    first = loss_of(model(batch), batch).item()
    assert 0.6 < first < 0.8
    for _ in range(150):
        model.zero_grad()
        loss_of(model(batch), batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss_of(model(batch), batch).item() < 0.05
    assert ((model(batch) > 0) == labels.bool()).all()


SETTINGS = {
    "dcnv2": [
        {"embedding_width": 3, "structure": structure, "cross": cross}
        for structure in ("parallel", "stacked")
        for cross in ("full", "mixture")
    ],
    "din_dcnv2_ple": [{"embedding_width": 3, "num_levels": 2, "attention_hidden": (6, 5)}],
    "fm": [{"width": 4}],
    "gdcn": [{"embedding_width": 3, "structure": structure} for structure in ("parallel", "stacked")],
    "infnet": [
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
    "infnet_v2": [{"num_blocks": num_blocks} for num_blocks in (1, 2, 3)],
    "longer": [{"embedding_width": 3, "num_layers": num_layers} for num_layers in (1, 3)],
    "onetrans": [{"embedding_width": 3, "num_layers": num_layers} for num_layers in (1, 3)],
    "ple": [{"embedding_width": 3, "num_levels": 2}],
    "stem": [{"width": 4, "num_shared": 1, "num_specific": 2, "hidden": (6, 5)}],
}
"""Settings that change which parameters a model has; where none are named, a table of another width is all."""


@pytest.mark.parametrize("lengths", [(5, 3), ()], ids=["histories", "no histories"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name in model_names() for settings in SETTINGS.get(name, [{"embedding_width": 3}])],
    ids=str,
)
def test_every_parameter_is_used(name, settings, lengths):
    layout = make_layout(tags=True, dense=True, gap=True, position=True, lengths=lengths)
    torch.manual_seed(0)
    model = build_model(name, layout, settings | {"embedding_std": 1.0}).double().eval()
    model(as_double(make_batch(model.layout, 6, 3))).square().sum().backward()
    parameters = parameters_of(model)
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.to_dense().any()] == []
