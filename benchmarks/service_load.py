"""The service under load: MLPerf's server scenario (Poisson arrivals) on the same machine; prints Markdown.

    python benchmarks/service_load.py --out runs/service_load
    python benchmarks/service_load.py --out runs/service_load_redis --redis

Requests of 500 candidates of random users of a bundle with 60 fields, 150 events and width 16 (random weights), as JSON
over HTTP to ``infnet serve``. Load generator, service and Redis share the machine. A latency counts from the moment at
which the schedule wanted the request sent. Saturation is the highest rate (in steps of 10%) at which every answer is a
200, whole, and 99% come within the deadline; twice that rate is offered as well. Stolen is the share of the processors'
time that the host gave to other machines meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import queue
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import mlperf_loadgen
import numpy as np
import torch

from infnet.export.bundle import Bundle
from infnet.export.exporter import export_run
from infnet.models import build_model
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from local_redis import running_redis
from local_service import served
from sized_log import prepare_sized

CANDIDATES, DEADLINE_MS = 500, 100
SENDERS = 128
STEP = 1.1


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table as JSON")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second of the first run")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a run")
    parser.add_argument("--redis", action="store_true", help="features in Redis instead of the embedded store")
    parser.add_argument("--workers", type=int, default=1, help="processes; several need --redis")
    parser.add_argument("--threads", type=int, default=2, help="ranking threads of a process")
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--batch-wait-ms", type=float, default=0.0)
    parser.add_argument("--bundle", type=Path, help="another bundle; its users and items")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        bundle = options.bundle or make_bundle(directory)
        if options.redis:
            with running_redis(directory / "redis") as url:
                rows = measure(bundle, directory, options, ["--store", url, "--workers", str(options.workers)])
        else:
            rows = measure(bundle, directory, options, [])
    write_atomically(options.out / "service_load.json", json.dumps(rows, indent=1))
    report(rows)


def make_bundle(directory: Path, seed: int = 0) -> Path:
    """Of an untrained INFNet with its default settings."""
    torch.manual_seed(seed)
    dataset = prepare_sized(directory / "data", 60, 150)
    config = TrainConfig(model="infnet", settings={"width": 16})
    run = Run.create(directory / "run", dataset, config)
    run.save_best(build_model("infnet", dataset.layout, config.settings), {})
    run.write_report({"metrics": {}})
    return export_run(run, directory / "bundle", checkpoint=False).path


def measure(bundle: Path, directory: Path, options: argparse.Namespace, store: list[str]) -> list[dict]:
    requests = make_requests(bundle, options.candidates)
    settings = ["--threads", str(options.threads), "--batch-wait-ms", str(options.batch_wait_ms), *store]
    with served(bundle, directory, settings) as service:
        client = Client(service.port, requests)
        client.run(20, 5.0)  # fills caches
        rows = [{"load": "asked", **client.run(options.rate, options.seconds)}]
        rate, best = options.rate, None
        while True:
            found = client.run(rate, options.seconds / 3)
            if found["whole"] < found["answers"] or found["p99_ms"] > DEADLINE_MS:
                break
            best, rate = rate, rate * STEP
        if best is not None:
            rows.append({"load": "saturation", **client.run(best, options.seconds)})
            rows.append({"load": "twice saturation", **client.run(2 * best, options.seconds)})
    return rows


def make_requests(bundle: Path, candidates: int) -> list[bytes]:
    """Whole HTTP requests, one for each of some users."""
    head = "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
    return [head.format(len(body)).encode() + body for body in request_bodies(bundle, candidates)]


def request_bodies(bundle: Path, candidates: int) -> list[bytes]:
    """JSON, one for each of some users."""
    opened, rng = Bundle.open(bundle), np.random.default_rng(0)
    bodies = []
    for _ in range(500):
        user = opened.users.key(int(rng.integers(1, len(opened.users) + 1)))
        items = opened.items.keys(rng.choice(len(opened.items), candidates, replace=False) + 1)
        body = {"user_id": user, "candidates": [{"item_id": item} for item in items], "limit": 20}
        bodies.append(json.dumps(body).encode())
    return bodies


class Client:
    """Sends requests as MLPerf's load generator schedules them."""

    def __init__(self, port: int, requests: list[bytes]) -> None:
        self._requests = requests
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: list[tuple[float, int, bool]] = []
        gc.collect()
        gc.freeze()  # the client's pauses are not the service's
        for _ in range(SENDERS):
            threading.Thread(target=self._send, args=(port,), daemon=True).start()

    def run(self, rate: float, seconds: float) -> dict:
        """Offer requests at a rate; what became of them."""
        self._answers = []
        settings = mlperf_loadgen.TestSettings()
        settings.scenario = mlperf_loadgen.TestScenario.Server
        settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
        settings.server_target_qps = rate
        settings.server_target_latency_ns = DEADLINE_MS * 1_000_000
        settings.min_duration_ms = round(1000 * seconds)
        settings.min_query_count = settings.max_query_count = round(rate * seconds)
        logs = mlperf_loadgen.LogSettings()
        with tempfile.TemporaryDirectory() as place:
            logs.log_output.outdir = place
            logs.log_output.copy_summary_to_stdout = False
            logs.enable_trace = False
            sut = mlperf_loadgen.ConstructSUT(self._issue, lambda: None)
            qsl = mlperf_loadgen.ConstructQSL(len(self._requests), len(self._requests), lambda _: None, lambda _: None)
            began, ticks = time.perf_counter(), processor_ticks()
            mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings, logs)
            elapsed = time.perf_counter() - began
            stolen = [after - before for before, after in zip(ticks, processor_ticks(), strict=True)]
            mlperf_loadgen.DestroyQSL(qsl)
            mlperf_loadgen.DestroySUT(sut)
            summary = (Path(place) / "mlperf_log_summary.txt").read_text()
        return self._summary(rate, elapsed, summary) | {"stolen": stolen[7] / sum(stolen)}

    def _issue(self, samples: list) -> None:
        now = time.perf_counter()
        for sample in samples:
            self._queue.put((sample, now))

    def _send(self, port: int) -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            sample, at = self._queue.get()
            connection.sendall(self._requests[sample.index])
            answer = connection.recv(1 << 16)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(1 << 16)
            self._answers.append((time.perf_counter() - at, int(answer[9:12]), b'"degraded":[]' in body))
            response = mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0)
            mlperf_loadgen.QuerySamplesComplete([response])

    def _summary(self, rate: float, elapsed: float, summary: str) -> dict:
        codes = Counter(code for _, code, _ in self._answers)
        ms = sorted(1000 * seconds for seconds, code, _ in self._answers if code == 200)
        refused = sorted(1000 * seconds for seconds, code, _ in self._answers if code == 503)
        told = dict(line.split(":", 1) for line in summary.splitlines() if ":" in line)
        return {
            "rate": rate,
            "answers": len(self._answers),
            "answers_per_s": len(self._answers) / elapsed,
            "codes": dict(codes),
            "whole": sum(code == 200 and whole for _, code, whole in self._answers),
            "p50_ms": statistics.median(ms) if ms else None,
            "p99_ms": float(np.percentile(ms, 99)) if ms else None,
            "max_ms": ms[-1] if ms else None,
            "late": sum(each > DEADLINE_MS for each in ms),
            "refused_p50_ms": statistics.median(refused) if refused else None,
            "refused_max_ms": refused[-1] if refused else None,
            "loadgen": {key.strip(): value.strip() for key, value in told.items() if "latency" in key},
        }


def processor_ticks() -> list[int]:
    """Of all processors so far: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(number) for number in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]


def report(rows: list[dict]) -> None:
    print("| load | requests/s | whole | degraded | 503 | p50 ms | p99 ms | max ms | late | 503: max ms | stolen |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        good, refused = row["codes"].get(200, 0), row["codes"].get(503, 0)
        cells = [row["load"], f"{row['rate']:.0f}", row["whole"], good - row["whole"], refused]
        cells += [f"{row[name]:.1f}" if row[name] is not None else "" for name in ("p50_ms", "p99_ms", "max_ms")]
        cells += [
            row["late"],
            f"{row['refused_max_ms']:.1f}" if row["refused_max_ms"] is not None else "",
            f"{row['stolen']:.1%}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
