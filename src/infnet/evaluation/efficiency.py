"""What a model costs: parameters, counted operations, and measured time and memory of training and scoring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infnet.data.batch import RequestBatch
from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.errors import DataError
from infnet.evaluation.predict import predict
from infnet.layers.table_read import plain_reads
from infnet.models.base import RankingModel
from infnet.training.config import TrainConfig
from infnet.training.environment import training_environment
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState
from infnet.training.step import Stepper

__all__ = ["ModelCost", "count_flops", "count_products", "measure_cost", "peak_mb_of", "request_rows", "seconds_of"]

_CPU = torch.device("cpu")
_STEPS, _REQUESTS, _SCORED_BATCHES = 4, 10, 2
"""Of one repeat."""
_FEW_ROWS = 8


class ModelCost(BaseModel):
    """What one model costs on one dataset, on the CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dense_parameters: int
    """All but the embedding table's."""
    embedding_parameters: int
    flops_per_row: int
    """Of the forward pass over a batch of requests with one candidate each, per row; see :func:`count_flops`."""
    flops_per_request: int
    """The same for all candidates of one request."""
    train_rows_per_s: float
    """Of whole training steps, each batch made when it is needed and not ahead."""
    score_rows_per_s: float
    """Of evaluating a split: making batches, forward pass, probabilities."""
    batch_ms: float
    """Of a training step on a batch that is ready: forward, loss, backward, update."""
    request_ms: float
    """Of the forward pass for one request, its batch ready."""
    peak_mb: float | None
    """Megabytes of resident memory that a training step needs at its peak, above what the process holds between steps;
    None where the system does not tell (elsewhere than on Linux). What the process has used before and kept is not
    counted, so measure in a process of its own."""

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return self.model_dump()


def measure_cost(
    model_name: str,
    settings: dict[str, Any],
    dataset: Dataset,
    *,
    batch_size: int = 1024,
    num_candidates: int = 500,
    repeats: int = 5,
    seed: int = 0,
    train: TrainConfig | None = None,
) -> ModelCost:
    """Build a model and see what it costs; times are medians over repeats of several steps each.

    The request is the one of :func:`request_rows`, from the test rows (from ``valid`` or ``train`` without any).

    Args:
        model_name: In the registry.
        settings: The model's own.
        dataset: To train and score on.
        batch_size: Rows of a training step, or all there are if the dataset has fewer.
        num_candidates: Of the request.
        repeats: Of each measurement, after one to warm up.
        seed: Of initial values, the order of rows and dropout.
        train: Optimiser, precision, threads and sessions; the defaults if None.

    Raises:
        SpecError: The model or one of its settings is unknown, or a value is out of range.
        DataError: The dataset has no training rows.
    """
    if dataset.num_rows("train") == 0:
        raise DataError(f"{dataset.path}: split 'train' has no rows; prepare it with other split dates")
    asked = {"model": model_name, "settings": settings, "batch_size": batch_size, "seed": seed, "device": "cpu"}
    config = (train or TrainConfig()).model_copy(update=asked)
    with training_environment(config, _CPU):
        state = TrainState.begin(dataset.layout, config, _CPU)
        model = state.model
        stepper = Stepper(state, config, Schedule("constant", 0, 0), Path("none"))
        batches = _training_batches(dataset, config, model.layout.has_gaps)
        split = next(name for name in ("test", "valid", "train") if dataset.manifest.splits.get(name))
        rows = request_rows(dataset, split, num_candidates)
        builder = BatchBuilder(dataset, dataset.rows(split), gaps=model.layout.has_gaps)
        request, singles = builder.build(rows[None]), builder.build(rows[:, None])

        model.train()
        stepper.step(builder.build(rows[:_FEW_ROWS, None]))  # memory of kernels and moments is no step's own
        peak_mb = peak_mb_of(lambda: _train_window(stepper, batches))
        windows = [_train_window(stepper, batches) for _ in range(repeats)]

        model.eval()
        with torch.inference_mode():
            request_s = seconds_of(lambda: model(request), repeats, _REQUESTS)
        first = _FirstBatches(dataset)
        scored = len(predict(model, first, split))
        score_s = seconds_of(lambda: predict(model, first, split), repeats)
        embedding = model.embedding.weight.numel()
        return ModelCost(
            dense_parameters=sum(p.numel() for p in model.parameters()) - embedding,
            embedding_parameters=embedding,
            flops_per_row=count_flops(model, singles) // len(rows),
            flops_per_request=count_flops(model, request),
            train_rows_per_s=statistics.median(rate for rate, _ in windows),
            score_rows_per_s=scored / score_s,
            batch_ms=1000 * statistics.median(step_s for _, step_s in windows),
            request_ms=1000 * request_s,
            peak_mb=peak_mb,
        )


def count_flops(model: RankingModel, batch: RequestBatch) -> int:
    """Floating-point operations of the matrix products in one forward pass; see :func:`count_products`."""
    return count_products(model, lambda: model(batch))


def count_products(module: nn.Module, run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products while ``run`` runs ``module``, a multiply-add counting two.

    Counted by PyTorch's dispatcher as they happen. Softmax, activations, norms, pooling and other elementwise work,
    embedding lookups, products of a matrix with a single vector and ``nn.LSTM`` (not ``nn.GRU``) are not counted.
    Fused attention kernels, which the counter cannot see into, are off meanwhile; they do the same products.
    """
    was_training = module.training
    module.eval()
    try:
        # With gradients on, PyTorch's modules keep to operators that the counter knows.
        with (
            plain_reads(),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            run()
    finally:
        module.train(was_training)
    return int(counter.get_total_flops())


def request_rows(dataset: Dataset, split: str, num_candidates: int) -> NDArray[np.int64]:
    """Row numbers (num_candidates,) that make up a request: the user with the most past events, and distinct items.

    The first is the row with the fullest histories, each further one the first row of another item, with the fields
    of its own request and item; repeated if the split has fewer items.
    """
    rows, layout = dataset.rows(split), dataset.layout
    events = np.zeros(len(rows), dtype=np.int64)
    for index, (behaviour, history) in enumerate(zip(layout.behaviours, dataset.histories, strict=True)):
        events += np.minimum(rows.ends[:, index] - history.starts[rows.user], behaviour.length)
    fullest = int(events.argmax())
    _, firsts = np.unique(rows.item, return_index=True)
    others = firsts[rows.item[firsts] != rows.item[fullest]]
    return np.resize(np.array([fullest, *np.sort(others)], dtype=np.int64), num_candidates)


def seconds_of(run: Callable[[], object], repeats: int, times: int = 1) -> float:
    """Seconds of one call, the median over repeats of so many calls each, after one repeat to warm up."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(times):
            run()
        found.append((time.perf_counter() - started) / times)
    return statistics.median(found[1:])


def peak_mb_of(run: Callable[[], object]) -> float | None:
    """Megabytes of resident memory that one call adds at its peak; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _peak_kb()
    except OSError:
        run()
        return None
    run()
    return (_peak_kb() - before) * 1024 / 1e6


class _FirstBatches:
    """A dataset whose passes end after a few batches."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def batches(self, split: str, batch_size: int, *, gaps: bool = False) -> Iterator[RequestBatch]:
        return islice(self.dataset.batches(split, batch_size, gaps=gaps), _SCORED_BATCHES)


def _training_batches(dataset: Dataset, config: TrainConfig, gaps: bool) -> Iterator[RequestBatch]:
    """Full batches, pass after pass; those of a dataset that fills none are what there is."""
    full = max(1, dataset.num_rows("train") // config.batch_size)
    for epoch in count():
        options: dict[str, Any] = {"seed": config.seed, "epoch": epoch, "sessions": config.sessions, "gaps": gaps}
        yield from islice(dataset.batches("train", config.batch_size, **options), full)


def _train_window(stepper: Stepper, batches: Iterator[RequestBatch]) -> tuple[float, float]:
    """Rows per second of a few steps with their batches made, and seconds of a step alone."""
    at, step_s, started = stepper.state.position, 0.0, time.perf_counter()
    rows = at.rows
    for batch in islice(batches, _STEPS):
        ready = time.perf_counter()
        stepper.step(batch)
        step_s += time.perf_counter() - ready
    return (at.rows - rows) / (time.perf_counter() - started), step_s / _STEPS


def _peak_kb() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
