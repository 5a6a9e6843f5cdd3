"""Swapping the served model under load, a hundred times; prints Markdown.

    python benchmarks/swaps.py --out runs/swaps

Two versions of a model with 60 fields, 150 events and width 16 (random weights) are published in turns to the directory
that ``infnet serve`` watches, while requests of 500 candidates come at a fixed rate. A swap takes from the call of
``publish`` to the first answer of the new version; so does the rollback. Resident memory is that of the service, before
the first swap, a while after some, and after the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from infnet.export.bundle import Bundle
from infnet.serving.publication import ModelDirectory
from infnet.training.checkpoint import write_atomically
from local_service import Local, served
from service_load import make_bundle, request_bodies

SETTLED = 10
"""Swaps after which memory is measured first."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table as JSON")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        bundles = [make_bundle(directory / str(seed), seed=seed) for seed in (0, 1)]
        live = ModelDirectory(directory / "live")
        live.publish(bundles[0])
        with served(live.path, directory, []) as service:
            found = swap(service, live, bundles, options)
    write_atomically(options.out / "swaps.json", json.dumps(found, indent=1))
    print("| | |")
    print("|---|---:|")
    for name, value in found.items():
        print(f"| {name.replace('_', ' ')} | {value} |")


def swap(service: Local, live: ModelDirectory, bundles: list[Path], options: argparse.Namespace) -> dict:
    """Swap again and again; what came of it."""
    bodies = request_bodies(bundles[0], 500)
    statuses: Counter = Counter()
    versions: Counter = Counter()
    stop = threading.Event()

    def ask(offset: int) -> None:
        with httpx.Client(base_url=service.url, timeout=10) as client:
            number = offset
            while not stop.wait(2 / options.rate):
                try:
                    answer = client.post("/v1/rank", content=bodies[number % len(bodies)])
                    statuses[answer.status_code] += 1
                    versions[answer.json().get("model_version")] += 1
                except httpx.TransportError as error:
                    statuses[type(error).__name__] += 1
                number += 2

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in (0, 1)]
    for thread in threads:
        thread.start()
    seconds, settled_mb = [], 0.0
    with httpx.Client(base_url=service.url, timeout=10) as client:

        def until_served(version: str, began: float) -> float:
            while client.get("/v1/model").json()["version"] != version:
                time.sleep(0.01)
            return time.perf_counter() - began

        time.sleep(2)
        first_mb = service.resident_mb
        for number in range(options.swaps):
            if number == min(SETTLED, options.swaps - 1):
                time.sleep(2)
                settled_mb = service.resident_mb
            began = time.perf_counter()
            seconds.append(until_served(live.publish(bundles[(number + 1) % 2]), began))
        time.sleep(2)
        last_mb = service.resident_mb
        began = time.perf_counter()
        back_s = until_served(live.rollback(), began)
    stop.set()
    for thread in threads:
        thread.join()
    failed = sum(count for status, count in statuses.items() if status != 200)
    return {
        "swaps": options.swaps,
        "requests": sum(statuses.values()),
        "failed_requests": failed,
        "versions_that_answered": len(versions),
        "seconds_of_a_swap,_median": round(statistics.median(seconds), 2),
        "seconds_of_a_swap,_longest": round(max(seconds), 2),
        "seconds_of_the_rollback": round(back_s, 2),
        "resident_MB_before": round(first_mb, 1),
        f"resident_MB_after_{SETTLED}_swaps": round(settled_mb, 1),
        f"resident_MB_after_{options.swaps}_swaps": round(last_mb, 1),
        "growth": f"{100 * (last_mb / settled_mb - 1):+.1f}%",
        "size_of_a_bundle,_MB": round(sum(r.size for r in Bundle.open(bundles[0]).manifest.files.values()) / 1e6, 1),
    }


if __name__ == "__main__":
    main()
