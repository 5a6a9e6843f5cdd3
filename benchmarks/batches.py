"""Rows per second of Dataset.batches on one core; prints a Markdown table.

    python benchmarks/batches.py                    random ids, 60 fields, three full histories of 50 events
    python benchmarks/batches.py DATA --split train    a dataset that infnet prepare made

One thread, pinned to one core, nothing made ahead. The first pass, which reads the files, does not count; then passes
in a shuffled order (as in training, another order each time) and in the rows' own order (as in evaluation) take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from filled_dataset import write_filled_dataset
from infnet.data.dataset import Dataset
from one_core import use_one_core


def rows_per_s(dataset: Dataset, split: str, batch_size: int, seed: int | None, epoch: int, limit: int) -> float:
    """Of one pass, or of its first ``limit`` batches."""
    rows, started = 0, time.perf_counter()
    for number, batch in enumerate(dataset.batches(split, batch_size, seed=seed, epoch=epoch), start=1):
        rows += batch.num_requests
        if number == limit:
            break
    return rows / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="prepared dataset; made of random ids by default")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--limit", type=int, default=100, help="batches of a pass that are measured")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the dataset of random ids")
    options = parser.parse_args(arguments)
    use_one_core()
    with tempfile.TemporaryDirectory() as directory:
        if options.data is None:
            dataset = write_filled_dataset(Path(directory), options.rows)
        else:
            dataset = Dataset.open(options.data)
        found: dict[str, list[float]] = {"shuffled": [], "own": []}
        for number in range(options.passes + 1):
            for order, seed in (("shuffled", 0), ("own", None)):
                rate = rows_per_s(dataset, options.split, options.batch_size, seed, number, options.limit)
                if number:
                    found[order].append(rate)
        layout = dataset.layout
        histories = " + ".join(str(b.length) for b in layout.behaviours) or "none"
        print(
            f"{dataset.num_rows(options.split):,} rows, batches of {options.batch_size:,}, {layout.num_fields} fields, "
            f"histories of {histories}, {layout.num_rows:,} embedding rows; {options.passes} passes, one core\n"
        )
        print("| order of the rows | rows/s, median | lowest | highest |")
        print("|---|---:|---:|---:|")
        for order, rates in found.items():
            print(f"| {order} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} |")


if __name__ == "__main__":
    main()
