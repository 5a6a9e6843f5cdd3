"""Latency of a ranking request with torch-rechub's DIN and PLE, as one would serve them; prints a Markdown table.

    pip install torch-rechub==0.9.0 -e '.[export]' -c constraints.txt
    python benchmarks/rechub_serving.py --json runs/rechub-serving.json

A request is a user's ids, three histories of item ids and a matrix of N candidates' ids. Its latency begins there:
torch-rechub's models take rows, so the user and the histories are repeated N times, and ends with probabilities in
NumPy. Each model is served by PyTorch (eval, inference mode) and by ONNX Runtime from the graph of torch-rechub's own
exporter, one thread each, in a process of its own, which loads what it needs and no more. Ids and weights are random,
all fields share one table, histories are full. The last lines compare the two back ends' probabilities.

`din` has the class's default attention (36, Dice) and knows one task; `ple` has torch-rechub's examples' settings (one
level, two specific experts of 16 per task and one shared, towers of 8) and four tasks. Not measured by default:
`din_example`, whose attention is that of torch-rechub's Amazon example (256 and 128), and `ple_wide`, which has our
PLE's widths (two shared and two specific experts of 256 and 128, towers of 64).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# PyTorch is imported where it is used: a process that serves with ONNX Runtime does without, and its peak shows it.

Values = dict[str, NDArray[Any]]
BEHAVIOURS = ("click", "like", "long_view")
NUM_TASKS, WIDTH, WARM_UP, VOCABULARY = 4, 16, 10, 100_000
MODELS: dict[str, dict[str, Any]] = {
    "din": {"attention_mlp_params": {}},
    "din_example": {"attention_mlp_params": {"dims": [256, 128]}},
    "ple": {
        "n_level": 1,
        "n_expert_specific": 2,
        "n_expert_shared": 1,
        "expert_params": {"dims": [16]},
        "tower_params_list": [{"dims": [8]}] * NUM_TASKS,
    },
    "ple_wide": {
        "n_level": 1,
        "n_expert_specific": 2,
        "n_expert_shared": 2,
        "expert_params": {"dims": [256, 128]},
        "tower_params_list": [{"dims": [64]}] * NUM_TASKS,
    },
}


@dataclass(frozen=True)
class Size:
    """Of a request, and how many there are."""

    num_candidates: int
    num_fields: int
    num_events: int
    """Of each behaviour."""
    num_requests: int

    @property
    def num_user_fields(self) -> int:
        """A third; the rest are the item's, its id the first of them."""
        return self.num_fields // 3

    @property
    def num_item_fields(self) -> int:
        """With the item's id."""
        return self.num_fields - self.num_user_fields


class Request(NamedTuple):
    """What a ranker is asked: ids as the models take them."""

    user: NDArray[np.int64]  # (user fields,)
    histories: NDArray[np.int64]  # (behaviours, events)
    candidates: NDArray[np.int64]  # (N, item fields)


@dataclass(frozen=True)
class Served:
    """What a process measured."""

    latencies_ms: NDArray[np.float64]
    peak_mb: float
    probs: NDArray[np.float32]
    """Of all its requests."""


def random_request(rng: np.random.Generator, size: Size) -> Request:
    shapes = (size.num_user_fields,), (len(BEHAVIOURS), size.num_events), (size.num_candidates, size.num_item_fields)
    return Request(*(rng.integers(1, VOCABULARY, shape) for shape in shapes))


def rows_of(request: Request) -> Values:
    """A row per candidate."""
    num_rows = len(request.candidates)
    values = {f"user{i}": np.repeat(value, num_rows) for i, value in enumerate(request.user)}
    for name, events in zip(BEHAVIOURS, request.histories, strict=True):
        values[name] = np.repeat(events[None], num_rows, axis=0)
    return values | {f"item{i}": np.ascontiguousarray(column) for i, column in enumerate(request.candidates.T)}


def build(model: str, size: Size) -> Any:
    """A network of torch-rechub with random weights, ready to serve."""
    import torch
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.basic.initializers import RandomNormal
    from torch_rechub.models.multi_task import PLE
    from torch_rechub.models.ranking import DIN

    torch.manual_seed(0)
    # Its default, 1e-4, would leave candidates too much alike to compare back ends by.
    table = {"vocab_size": VOCABULARY, "embed_dim": WIDTH, "padding_idx": 0, "initializer": RandomNormal(0, 0.5)}
    item = SparseFeature("item0", **table)
    others = [f"user{i}" for i in range(size.num_user_fields)] + [f"item{i}" for i in range(1, size.num_item_fields)]
    fields = [SparseFeature(name, shared_with="item0", **table) for name in others]
    pooling = "mean" if model.startswith("ple") else "concat"
    histories = [SequenceFeature(name, pooling=pooling, shared_with="item0", **table) for name in BEHAVIOURS]
    if model.startswith("ple"):
        network = PLE([item, *fields, *histories], ["classification"] * NUM_TASKS, **MODELS[model])
    else:  # its DIN reads the i-th history for the i-th target
        network = DIN(fields, histories, [item] * len(histories), {"dims": [256, 128]}, **MODELS[model])
    request = random_request(np.random.default_rng(1), replace(size, num_candidates=512))
    with torch.no_grad():  # a step in training mode, so that BatchNorm has statistics to apply
        network.train()(_tensors(rows_of(request)))
    return network.eval()


def serve_pytorch(model: str, size: Size, graph: Path) -> Served:
    """Measure; export the network afterwards, when the peak has been read."""
    import torch

    from one_core import use_one_core

    use_one_core()
    network = build(model, size)

    def score(values: Values) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(_tensors(values)).numpy()

    served = measure(score, size)
    export(network, graph)
    return served


def export(network: Any, graph: Path) -> None:
    from torch_rechub.utils.onnx_export import ONNXExporter

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    # Its default, 14, is older than what PyTorch's exporter writes: pages of warnings, then the same graph in 18.
    ONNXExporter(network).export(str(graph), opset_version=18)


def serve_onnx(size: Size, graph: Path) -> Served:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return measure(lambda values: session.run(None, values)[0], size)


def measure(score: Callable[[Values], NDArray[np.float32]], size: Size) -> Served:
    """Time the same random requests for every caller."""
    rng, latencies_ms, probs = np.random.default_rng(0), [], []
    for _ in range(WARM_UP + size.num_requests):
        request = random_request(rng, size)
        started = time.perf_counter()
        found = score(rows_of(request))
        latencies_ms.append(1000 * (time.perf_counter() - started))
        probs.append(found.copy())  # not a view that keeps the back end's memory
    return Served(np.array(latencies_ms[WARM_UP:]), _peak_mb(), np.stack(probs))


def in_own_process(run: Callable[[], Served]) -> Served:
    """On the core that this process is pinned to."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run).result()


def _tensors(values: Values) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in values.items()}


def _peak_mb() -> float:
    """Megabytes of resident memory that the process had at its peak."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux rusage would count from the size of the parent
        peak_kb = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak_kb) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["din", "ple"], choices=MODELS)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--fields", type=int, default=60, help="a third of the user, the rest of the item")
    parser.add_argument("--events", type=int, default=50, help="of each of three behaviours")
    parser.add_argument("--requests", type=int, default=200, help=f"measured ones, after {WARM_UP} to warm up")
    parser.add_argument("--json", type=Path, help="file to write the table's rows to")
    options = parser.parse_args(arguments)
    try:
        versions = [f"{name} {version(name)}" for name in ("torch-rechub", "torch", "onnxscript", "onnxruntime")]
    except PackageNotFoundError as error:
        sys.exit(f"Error: {error.name} is not installed; pip install torch-rechub==0.9.0 'infnet[export]'")
    from one_core import use_one_core

    use_one_core()  # the processes it starts inherit the core
    size = Size(options.candidates, options.fields, options.events, options.requests)
    print(f"{', '.join(versions)}; {size}, {os.cpu_count()} cores, one used\n")
    print("| model | back end | ms (median) | p99 ms | peak MB of the process |\n|---|---|---:|---:|---:|")
    rows, differences = [], []
    for model in options.models:
        with tempfile.TemporaryDirectory() as directory:
            graph = Path(directory) / "model.onnx"
            by_pytorch = in_own_process(partial(serve_pytorch, model, size, graph))
            by_onnx = in_own_process(partial(serve_onnx, size, graph))
        for backend, served in (("PyTorch", by_pytorch), ("ONNX Runtime", by_onnx)):
            p50_ms, p99_ms = np.percentile(served.latencies_ms, [50, 99]).tolist()
            measured = {"p50_ms": p50_ms, "p99_ms": p99_ms, "peak_mb": served.peak_mb}
            rows.append({"model": model, "backend": backend, **measured})
            print(f"| {model} | {backend} | {p50_ms:.1f} | {p99_ms:.1f} | {served.peak_mb:,.0f} |", flush=True)
        probs, difference = by_pytorch.probs, np.abs(by_onnx.probs - by_pytorch.probs).max()
        differences.append(f"{model}: {difference:.1e}, of probabilities from {probs.min():.3f} to {probs.max():.3f}")
        if not difference < 1e-4:
            sys.exit(f"Error: the back ends disagree on {differences[-1]}")
    print("\nlargest difference between the back ends:", *differences, sep="\n- ")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
