"""Training rows per second with a user's session as one request (N > 1) against a row each (N = 1), one core.

    python benchmarks/sessions.py prepared
    python benchmarks/sessions.py --fields 60 --events 150 --page 16

Both train the same model on the same prepared dataset, in turns, by the trainer's own steps; a batch holds as many
rows. Grouped, a session's rows share the user side and the history before the first of them. Without a dataset, one of
random values is made, whose users see so many items at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from infnet.data.batch import RequestBatch
from infnet.data.dataset import Dataset
from infnet.data.sessions import SessionGrouping, group_sessions
from infnet.errors import InfnetError
from infnet.training.config import TrainConfig
from infnet.training.environment import training_environment
from infnet.training.memory import keep_freed_memory
from one_core import use_one_core
from sized_log import prepare_sized
from training_speed import Training


class GroupedTraining(Training):
    """Training by sessions, if the configuration says so."""

    def _all_batches(self) -> Iterator[RequestBatch]:
        config = self.config
        for epoch in range(1_000_000):
            options = {"seed": config.seed, "epoch": epoch, "sessions": config.sessions}
            yield from self.dataset.batches("train", config.batch_size, **options)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="prepared dataset; random values without")
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--events", type=int, default=150)
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--max-candidates", type=int, nargs="+", default=[4, 16, 64], help="of a request")
    parser.add_argument("--windows", type=int, default=8, help="of each, after one to warm up")
    parser.add_argument("--steps", type=int, default=8, help="in a window")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        if options.data is None:
            place = Path(directory) / "data"
            dataset = prepare_sized(place, options.fields, options.events, num_users=1000, page=options.page)
        else:
            dataset = Dataset.open(options.data)
        use_one_core()
        keep_freed_memory()
        measure(dataset, options)


def measure(dataset: Dataset, options: argparse.Namespace) -> None:
    groupings = [None, *(SessionGrouping(max_candidates=most) for most in options.max_candidates)]
    configs = [
        TrainConfig(
            model="infnet",
            settings={"width": options.width},
            batch_size=options.batch_size,
            threads=1,
            prefetch=0,
            sessions=grouping,
        )
        for grouping in groupings
    ]
    with training_environment(configs[0], torch.device("cpu")):
        trainings = [GroupedTraining(dataset, config) for config in configs]
        rates: list[list[float]] = [[] for _ in trainings]
        for number in range(options.windows + 1):
            for found, training in zip(rates, trainings, strict=True):
                rate, _ = training.window(options.steps)
                if number:
                    found.append(rate)
    print("| requests | rows a request | rows/s | times a row each |\n|---|---:|---:|---:|")
    rows = dataset.rows("train")
    for grouping, found in zip(groupings, rates, strict=True):
        mean = 1.0
        if grouping is not None:
            requests = group_sessions(rows.user, rows.time, (rows.context, rows.context_dense), grouping)
            mean = len(rows) / (len(requests.starts) - 1)
        name = "a row each" if grouping is None else f"sessions of up to {grouping.max_candidates}"
        ratio = statistics.median(own / alone for own, alone in zip(found, rates[0], strict=True))
        print(f"| {name} | {mean:.1f} | {statistics.median(found):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
