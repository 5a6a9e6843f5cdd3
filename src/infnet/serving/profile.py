"""What a bundle's requests cost: latency, throughput, memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from infnet.errors import TrainingError
from infnet.export.bundle import BackendName
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker

__all__ = ["RequestCost", "peak_mb", "profile_bundle", "profile_table"]

_WARM, _LEAST, _SECONDS = 20, 200, 3.0


class RequestCost(BaseModel):
    """Of requests of one size, raw keys in and predictions out, one after the other in one process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    backend: BackendName
    candidates: int
    threads: int
    """Of one request."""
    p50_ms: float
    p99_ms: float
    requests_per_s: float
    peak_mb: float | None
    """Largest resident memory of the process so far, everything included; None where the system does not tell."""


def profile_bundle(
    path: Path, *, candidates: Sequence[int], threads: Sequence[int], backend: BackendName | None = None
) -> list[RequestCost]:
    """Measure a bundle, each number of threads in a fresh process.

    Requests go through the bundle's users; items are drawn at random from its catalogue.

    Args:
        path: Of the bundle.
        candidates: Of a request, several to measure.
        threads: Of a request, several to measure.
        backend: The bundle's default if None.

    Raises:
        ArtifactError: It is no bundle, or is damaged.
        TrainingError: A process was ended from outside, such as for want of memory.
    """
    rows: list[RequestCost] = []
    for count in threads:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            try:
                rows += process.submit(_measure, path, sorted(candidates), count, backend).result()
            except BrokenProcessPool as error:
                raise TrainingError(
                    f"{path}: the process that measured it was ended; ask for fewer candidates"
                ) from error
    return rows


def profile_table(title: str, rows: Sequence[RequestCost]) -> Table:
    """A line per measurement."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("candidates", "threads", "p50 ms", "p99 ms", "requests/s", "peak MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        peak = "" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
        cells = (f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.requests_per_s:,.0f}", peak)
        table.add_row(f"{row.candidates:,}", str(row.threads), *cells)
    return table


def _measure(path: Path, candidates: Sequence[int], threads: int, backend: BackendName | None) -> list[RequestCost]:
    torch.set_num_threads(threads)
    ranker = Ranker.load(path, backend=backend, threads=threads)
    bundle, rng = ranker.bundle, np.random.default_rng(0)
    users = (
        [bundle.users.key(i) for i in rng.integers(1, max(2, len(bundle.users) + 1), 500)]
        if len(bundle.users)
        else ["none"]
    )
    now = max((int(h.times.max()) for h in bundle.histories if len(h.times)), default=0)
    rows = []
    for num in candidates:
        lists = [[bundle.items.key(i) for i in rng.integers(1, len(bundle.items) + 1, num)] for _ in range(20)]
        seconds: list[float] = []
        while len(seconds) < _WARM + _LEAST and sum(seconds) < _SECONDS * max(1, num / 500):
            place = len(seconds)
            request = RankRequest(users[place % len(users)], lists[place % len(lists)], time_ms=now)
            started = time.perf_counter()
            ranker.score_many([request])
            seconds.append(time.perf_counter() - started)
        ms = 1000 * np.array(seconds[_WARM:] or seconds)
        rows.append(
            RequestCost(
                backend=backend or bundle.manifest.backend,
                candidates=num,
                threads=threads,
                p50_ms=float(np.percentile(ms, 50)),
                p99_ms=float(np.percentile(ms, 99)),
                requests_per_s=float(1000 / ms.mean()),
                peak_mb=peak_mb(),
            )
        )
    return rows


def peak_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6
