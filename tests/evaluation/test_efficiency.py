import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from infnet.data.dataset import Dataset
from infnet.errors import DataError, SpecError
from infnet.evaluation.efficiency import count_flops, measure_cost, request_rows
from infnet.models import build_model
from infnet.training.config import TrainConfig
from random_batches import make_batch, make_layout
from small_dataset import write_dataset

SMALL = {"width": 4, "hidden": (16, 8), "head_hidden": (4,)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def product(rows, inner, columns):
    return 2 * rows * inner * columns


@pytest.mark.parametrize(("R", "N"), [(1, 1), (3, 4)])
def test_shared_bottom_costs_the_products_that_its_paper_names(R, N):
    layout = make_layout()
    batch = make_batch(layout, R, N)
    d, h, towers = SMALL["width"], SMALL["hidden"], SMALL["head_hidden"][0]
    J, E, F, T = len(batch.item.ids), len(batch.event_ids), len(layout.behaviours), len(layout.tasks)
    of_request, of_item, of_candidate = (len(layout.side("user")) + len(layout.side("context"))), 3, 1
    wanted = (
        F * product(E, 2 * d, d)  # events: two fields joined and projected, for each behaviour
        + product(R, (of_request + F) * d, h[0])
        + product(J, of_item * d, h[0])
        + product(R * N, of_candidate * d, h[0])
        + product(R * N, h[0], h[1])
        + T * (product(R * N, h[1], towers) + product(R * N, towers, 1))
    )
    assert count_flops(build_model("shared_bottom", layout, SMALL), batch) == wanted


@pytest.mark.parametrize("num_heads", [1, 2])
def test_an_event_that_infnet_reads_costs_4_d_a_query(num_heads):
    layout = make_layout(lengths=(9, 3))
    d = 8
    model = build_model("infnet", layout, {"width": d, "embedding_width": None, "num_heads": num_heads})
    batch = make_batch(layout, 1, 1)

    def with_events(n):
        return replace(batch, history_present=torch.arange(layout.seq_len)[None] < n)

    counts = {"cat": model.config.num_cat_proxies, "shared": model.config.num_shared_tasks, "task": len(layout.tasks)}
    readers = sum(counts[kind] for block in model.blocks for kind in block.reads.get("seq", []))
    found = [count_flops(model, with_events(n)) for n in (4, 5, 9)]
    assert found[1] - found[0] == num_heads * readers * 4 * d
    assert found[2] - found[1] == 4 * (found[1] - found[0])


R, L, D = 3, 5, 8


@pytest.mark.parametrize(
    ("layer", "run", "wanted"),
    [
        (nn.GRU(D, D, batch_first=True), lambda gru, x: gru(x), 2 * product(R * L, D, 3 * D)),
        (nn.Identity(), lambda _, x: F.scaled_dot_product_attention(x, x, x), 2 * product(R * L, D, L)),
        (
            nn.MultiheadAttention(D, 2, batch_first=True),
            lambda attention, x: attention(x, x, x, need_weights=False),
            4 * product(R * L, D, D) + 2 * product(R * L, D, L),
        ),
        (
            nn.TransformerEncoderLayer(D, 2, 4 * D, batch_first=True),
            lambda layer, x: layer(x),
            12 * product(R * L, D, D) + 2 * product(R * L, D, L),
        ),
    ],
    ids=["gru", "sdpa", "multi-head", "transformer"],
)
def test_layers_with_fused_kernels_are_counted(layer, run, wanted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return run(self.layer, x)

    assert count_flops(Model(), torch.randn(R, L, D)) == wanted


def test_the_cost_of_a_small_model(dataset):
    cost = measure_cost("shared_bottom", SMALL, dataset, batch_size=64, num_candidates=20, repeats=1)
    model = build_model("shared_bottom", dataset.layout, SMALL)
    assert cost.embedding_parameters == dataset.layout.num_rows * SMALL["width"]
    assert cost.dense_parameters + cost.embedding_parameters == sum(p.numel() for p in model.parameters())
    assert cost.flops_per_row < cost.flops_per_request < 20 * cost.flops_per_row
    times = (cost.batch_ms, cost.request_ms, cost.train_rows_per_s, cost.score_rows_per_s)
    assert all(value > 0 for value in times)
    # In one window rows a second count the making of batches too, which milliseconds a batch do not.
    assert cost.train_rows_per_s < 64 / (cost.batch_ms / 1000)
    assert json.loads(json.dumps(cost.as_json())) == cost.as_json()


def test_measuring_leaves_random_numbers_and_threads_alone(dataset):
    torch.manual_seed(3)
    wanted, threads = torch.randn(2), torch.get_num_threads()
    torch.manual_seed(3)
    options = TrainConfig(threads=threads + 1, optimizer="adagrad")
    measure_cost("shared_bottom", SMALL, dataset, batch_size=32, num_candidates=3, repeats=1, train=options)
    assert torch.equal(torch.randn(2), wanted)
    assert torch.get_num_threads() == threads


def test_what_cannot_be_built_or_trained_is_refused(dataset, tmp_path):
    with pytest.raises(SpecError, match="no setting 'widht'; did you mean 'width'"):
        measure_cost("shared_bottom", {"widht": 4}, dataset)
    empty = write_dataset(tmp_path, {"train": 0, "valid": 10})
    with pytest.raises(DataError, match="split 'train' has no rows"):
        measure_cost("shared_bottom", SMALL, empty)


def test_a_request_is_the_fullest_history_with_distinct_items(dataset):
    rows = dataset.rows("valid")
    chosen = request_rows(dataset, "valid", 15)
    assert len(set(rows.item[chosen].tolist())) == 15
    lengths = [b.length for b in dataset.layout.behaviours]
    starts = np.stack([h.starts[rows.user] for h in dataset.histories], axis=1)
    events = np.minimum(rows.ends - starts, lengths).sum(axis=1)
    assert events[chosen[0]] == events.max()
    num_items = len(np.unique(rows.item))
    many = request_rows(dataset, "valid", 100)
    assert len(many) == 100
    assert len(np.unique(rows.item[many])) == num_items
    assert many[num_items] == many[0]


def test_a_dataset_without_behaviours_has_requests_too(dataset):
    manifest = dataset.manifest
    layout = manifest.layout.model_copy(update={"behaviours": ()})
    plain = Dataset(dataset.path, manifest.model_copy(update={"layout": layout}))
    assert request_rows(plain, "valid", 5)[0] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_peak_memory_is_what_was_needed_for_a_moment():
    script = (
        "import numpy as np\n"
        "from infnet.evaluation.efficiency import peak_mb_of\n"
        "peak_mb_of(lambda: np.ones(1_000_000))\n"  # what NumPy keeps for itself
        "print(peak_mb_of(lambda: np.ones(25_000_000).sum()))\n"
    )
    # In a process of its own: what earlier tests freed may serve here.
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "None" or float(found) == pytest.approx(200, rel=0.1)
