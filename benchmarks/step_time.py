"""Forward and backward of INFNet against its equations written out, one core, medians in one run.

python benchmarks/step_time.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from equations import WrittenOut
from infnet.models import INFNet, INFNetConfig
from infnet.training.memory import keep_freed_memory
from one_core import use_one_core
from random_shapes import random_batch, sized_layout


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def step(model: nn.Module, batch: object) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    model(batch).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=1024)
    args = parser.parse_args()
    use_one_core()
    keep_freed_memory()  # as training does
    print("| settings | M | L | d | equations, ms | folded, ms | ratio | largest relative difference |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    sizes = ((60, 150, 16), (89, 200, 32), (89, 200, 64))
    settings = {"default": INFNetConfig(), "paper": INFNetConfig.paper()}
    for (name, config), (fields, seq_len, width) in product(settings.items(), sizes):
        torch.manual_seed(0)
        layout = sized_layout(fields, seq_len)
        batch = random_batch(layout, args.batch_size, 1)
        model = INFNet(layout, config.model_copy(update={"width": width, "proxy_width": None}))
        slow = WrittenOut(model)
        slow.eval()  # and with it the model inside: dropout would draw anew for each
        fast_out, slow_out = model(batch), slow(batch)
        difference = ((fast_out - slow_out).abs().max() / slow_out.abs().max()).item()
        slow.train()
        pairs = [
            (seconds(lambda m=slow, b=batch: step(m, b), 1)[0], seconds(lambda m=model, b=batch: step(m, b), 1)[0])
            for _ in range(args.repeats + 1)
        ][1:]
        slow_ms, fast_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(s / f for s, f in pairs)
        size = f"{fields} | {seq_len} | {width}"
        print(f"| {name} | {size} | {slow_ms:.0f} | {fast_ms:.0f} | {ratio:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
