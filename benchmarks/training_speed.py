"""Rows per second of training and of scoring, INFNet beside Shared-Bottom and PLE, on one core; prints Markdown.

    python benchmarks/training_speed.py DATA
    python benchmarks/training_speed.py --raw KuaiRand-Pure --fields 60 --valid-from 2022-05-07 --test-from 2022-05-08

DATA is a prepared dataset. With --raw instead, KuaiRand-Pure is prepared in a temporary directory with so many
fields: the last ones of its video statistics are left out. --history FILE goes with a log that begins in the middle of
its users' lives.

A step is the trainer's own: make the batch, forward, loss, backward, clipping, sparse Adam on the rows touched and Adam
on the rest, in the environment that the trainer sets up. Scoring is the evaluator's: make the batch, forward,
probabilities. One thread, one core, nothing made ahead. All models work in one process and take turns, a window each,
on the same rows in the same order; ratios are those of neighbouring windows. PLE has one level, two shared and two
specific experts of 256 and 128 per task.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from infnet.api import prepare
from infnet.data.batch import RequestBatch
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.errors import InfnetError, SpecError
from infnet.evaluation.predict import predict
from infnet.schema import DatasetSpec
from infnet.training.config import TrainConfig
from infnet.training.environment import training_environment
from infnet.training.memory import keep_freed_memory
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState
from infnet.training.step import Stepper
from one_core import use_one_core

MODELS: dict[str, dict[str, Any]] = {
    "shared_bottom": {"hidden": (256, 128), "head_hidden": (64,)},
    "infnet": {},
    "ple": {"num_levels": 1, "num_shared": 2, "num_specific": 2, "hidden": (256, 128), "head_hidden": (64,)},
}
SCORED_BATCHES = 2
"""In a window, of 4,096 rows."""
CPU = torch.device("cpu")


def kuairand_of(num_fields: int, valid_from: date, test_from: date) -> DatasetSpec:
    """KuaiRand-Pure with the first ``num_fields`` features, which has them all but some of the statistics, and
    histories up to the row."""
    spec = known_spec("kuairand-pure").with_split(valid_from, test_from)
    least = len(known_spec("kuairand-pure-nostats").features)
    if not least <= num_fields <= len(spec.features):
        raise SpecError(f"--fields {num_fields}: wanted {least} to {len(spec.features)}")
    return DatasetSpec.model_validate(spec.model_dump() | {"features": spec.features[:num_fields]}).with_delay(0)


class Training:
    """One model in training, epoch after epoch."""

    def __init__(self, dataset: Dataset, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.dataset, self.config = dataset, config
        self.state = TrainState.begin(dataset.layout, config, CPU)
        self.stepper = Stepper(self.state, config, Schedule("constant", 0, 0), Path("none"))
        self.state.model.train()
        self._training_batches = self._all_batches()

    def _all_batches(self) -> Iterator[RequestBatch]:
        for epoch in range(1_000_000):
            yield from self.dataset.batches("train", self.config.batch_size, seed=self.config.seed, epoch=epoch)

    def window(self, steps: int) -> tuple[float, float]:
        """Rows per second of so many steps, and the share of their time in which batches were made."""
        rows, batch_s, started = self.state.position.rows, 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(self._training_batches)
            batch_s += time.perf_counter() - asked
            self.stepper.step(batch)
        elapsed = time.perf_counter() - started
        return (self.state.position.rows - rows) / elapsed, batch_s / elapsed

    def scoring(self) -> float:
        """Rows per second of evaluation: making batches, forward, probabilities."""
        started = time.perf_counter()
        rows = len(predict(self.state.model, self, "train"))
        return rows / (time.perf_counter() - started)

    def batches(self, split: str, batch_size: int, *, gaps: bool = False) -> Iterator[RequestBatch]:
        """A few batches, for :meth:`scoring`."""
        return islice(self.dataset.batches(split, batch_size, gaps=gaps), SCORED_BATCHES)


@dataclass(frozen=True)
class Window:
    """What one model did in one of its turns: rows per second, and the share of training spent on making batches."""

    training: float
    batch_share: float
    scoring: float


def measure(dataset: Dataset, options: argparse.Namespace) -> dict[str, list[Window]]:
    """Every model's windows after the first, which warms up."""
    configs = {
        name: TrainConfig(
            model=name,
            settings={"width": options.width, **settings},
            batch_size=options.batch_size,
            threads=1,
            prefetch=0,
        )
        for name, settings in MODELS.items()
    }
    keep_freed_memory()
    with training_environment(configs["infnet"], CPU):
        trainings = {name: Training(dataset, config) for name, config in configs.items()}
        windows: dict[str, list[Window]] = {name: [] for name in trainings}
        for number in range(options.windows + 1):
            for name, training in trainings.items():
                found = Window(*training.window(options.steps), training.scoring())
                if number:
                    windows[name].append(found)
    return windows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="prepared dataset")
    parser.add_argument("--raw", type=Path, help="KuaiRand-Pure, to be prepared with --fields fields")
    parser.add_argument("--history", type=Path, help="events from before the log in --raw")
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--valid-from", type=date.fromisoformat, default=date(2022, 5, 5))
    parser.add_argument("--test-from", type=date.fromisoformat, default=date(2022, 5, 6))
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--width", type=int, default=16, help="d")
    parser.add_argument("--windows", type=int, default=10, help="of each model, after one to warm up")
    parser.add_argument("--steps", type=int, default=10, help="in a window")
    options = parser.parse_args(arguments)
    if (options.data is None) == (options.raw is None):
        parser.error("give a prepared dataset, or --raw")
    with tempfile.TemporaryDirectory() as directory:
        if options.data is None:
            spec = kuairand_of(options.fields, options.valid_from, options.test_from)
            prepare(spec, options.raw, Path(directory) / "prepared", history=options.history)
        use_one_core()  # preparation may have them all
        dataset = Dataset.open(options.data or Path(directory) / "prepared")
        windows = measure(dataset, options)
    layout = dataset.layout
    histories = " + ".join(str(b.length) for b in layout.behaviours) or "none"
    print(
        f"{dataset.manifest.name}: {layout.num_fields} fields, histories of {histories}, {len(layout.tasks)} tasks; "
        f"batches of {options.batch_size:,}, d = {options.width}, one core; "
        f"{options.windows} windows of {options.steps} steps\n"
    )
    print("| model | training, rows/s | lowest | highest | making batches | scoring, rows/s | lowest | highest |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, found in windows.items():
        cells = [*spread([w.training for w in found]), f"{statistics.median(w.batch_share for w in found):.0%}"]
        print(f"| {name} | {' | '.join([*cells, *spread([w.scoring for w in found])])} |")
    for name in ("shared_bottom", "ple"):
        pairs = list(zip(windows["infnet"], windows[name], strict=True))
        training = statistics.median(own.training / other.training for own, other in pairs)
        scoring = statistics.median(own.scoring / other.scoring for own, other in pairs)
        print(f"\ninfnet trains {training:.2f} times as many rows as {name}, and scores {scoring:.2f} times as many")


def spread(rates: list[float]) -> list[str]:
    """Median, lowest and highest."""
    return [f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))]


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
