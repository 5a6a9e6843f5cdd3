"""What one training step of the embedding table costs as the table grows; prints a Markdown table. One core.

    OMP_NUM_THREADS=1 python benchmarks/embedding_step.py --touched 8000

A step reads as many distinct rows of every table, and goes forward, backward, through gradient clipping and the update.
The batches repeat, so that the pages of the moments have been mapped when measuring begins. For comparison the same
step with PyTorch's SparseAdam and, while one takes less than a second, with a dense gradient and its fused Adam.
Every line is measured in every round, so that a slow moment of the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from infnet.layers.embedding import EmbeddingTable
from infnet.training.table_optimizer import TableOptimizer, touched_rows

DENSE_LIMIT = 1_000_000
"""Ids up to which the dense step is measured."""


def own_step(table: EmbeddingTable, optimizer: TableOptimizer, rows: Tensor, upstream: Tensor) -> None:
    """One step as the trainer does it."""
    table.weight.grad = None
    table(rows).backward(upstream)
    assert table.weight.grad is not None
    distinct, gradient = touched_rows(table.weight.grad)
    gradient.mul_((10.0 / (gradient.norm() + 1e-6)).clamp(max=1.0))
    optimizer.step_rows(distinct, gradient, 1e-3)


def torch_step(
    weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, rows: Tensor, upstream: Tensor, *, sparse: bool
) -> None:
    """The same with an optimiser of PyTorch's."""
    weight.grad = None
    F.embedding(rows, weight, sparse=sparse).backward(upstream)
    assert weight.grad is not None
    norm = (weight.grad.coalesce().values() if sparse else weight.grad).norm()
    weight.grad.mul_((10.0 / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()


def steps_of(num_rows: int, touched: int, width: int, batches: int) -> dict[str, Callable[[int], None]]:
    """Ways to take step number i on a table of its own."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(num_rows, generator=generator)[:touched] for _ in range(batches)]
    upstream = torch.randn(touched, width, generator=generator)
    table = EmbeddingTable(num_rows, width)
    own = TableOptimizer(table.weight)
    steps: dict[str, Callable[[int], None]] = {"own": lambda i: own_step(table, own, rows[i % batches], upstream)}
    if num_rows <= DENSE_LIMIT:
        sparse_weight = torch.nn.Parameter(table.weight.detach().clone())
        sparse = torch.optim.SparseAdam([sparse_weight])
        steps["SparseAdam"] = lambda i: torch_step(sparse_weight, sparse, rows[i % batches], upstream, sparse=True)
        dense_weight = torch.nn.Parameter(table.weight.detach().clone())
        dense = torch.optim.Adam([dense_weight], fused=True)
        steps["dense Adam"] = lambda i: torch_step(dense_weight, dense, rows[i % batches], upstream, sparse=False)
    return steps


def main() -> None:
    """Measure all table sizes side by side and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--touched", type=int, default=8000, help="distinct rows that a step reads")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="different batches")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    tables = {n: steps_of(n, options.touched, options.width, options.batches) for n in options.ids}
    seconds: dict[tuple[int, str], list[float]] = {}
    for i in range(-options.batches, options.rounds):
        for num_rows, steps in tables.items():
            for name, step in steps.items():
                started = time.perf_counter()
                step(i)
                if i >= 0:
                    seconds.setdefault((num_rows, name), []).append(time.perf_counter() - started)
    medians = {key: 1e3 * statistics.median(times) for key, times in seconds.items()}

    smallest = options.ids[0]
    print(f"\n{options.touched:,} distinct rows of width {options.width} a step; median of {options.rounds} steps\n")
    print(f"| ids | own, ms | times {smallest:,} ids | SparseAdam, ms | dense Adam, ms |")
    print("|---:|---:|---:|---:|---:|")
    for num_rows in options.ids:
        others = [
            f"{medians[num_rows, n]:.2f}" if (num_rows, n) in medians else "" for n in ("SparseAdam", "dense Adam")
        ]
        ratio = medians[num_rows, "own"] / medians[smallest, "own"]
        print(f"| {num_rows:,} | {medians[num_rows, 'own']:.2f} | {ratio:.2f} | {others[0]} | {others[1]} |")


if __name__ == "__main__":
    main()
