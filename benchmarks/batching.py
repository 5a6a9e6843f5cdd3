"""Small requests one by one, computed together when they happen to wait, or waiting for each other; prints Markdown.

    python benchmarks/batching.py --out runs/batching

Requests of 30 candidates of a bundle with 60 fields, 150 events and width 16 (random weights), Poisson arrivals, load
generator and service on the same machine. Every setting is served at every rate in turns; the table has the median of
the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from infnet.training.checkpoint import write_atomically
from local_service import served
from service_load import Client, make_bundle, make_requests

SETTINGS = {
    "one by one": ["--batch", "1"],
    "together when they wait": [],
    "wait for others, 1 ms": ["--batch-wait-ms", "1"],
    "wait for others, 3 ms": ["--batch-wait-ms", "3"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table as JSON")
    parser.add_argument("--rates", type=float, nargs="+", default=[100.0, 300.0, 500.0, 700.0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=30)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, float], list[dict]] = {}
    with tempfile.TemporaryDirectory() as place:
        bundle = make_bundle(Path(place))
        requests = make_requests(bundle, options.candidates)
        for turn in range(options.turns):
            for number, (name, settings) in enumerate(SETTINGS.items()):
                directory = Path(place) / f"{turn}-{number}"
                directory.mkdir()
                with served(bundle, directory, settings) as service:
                    client = Client(service.port, requests)
                    client.run(50, 3.0)  # fills caches
                    for rate in options.rates:
                        runs.setdefault((name, rate), []).append(client.run(rate, options.seconds))
    rows = [
        {"setting": name, "rate": rate}
        | {key: statistics.median(run[key] or 0 for run in found) for key in ("p50_ms", "p99_ms", "whole", "answers")}
        for (name, rate), found in runs.items()
    ]
    write_atomically(options.out / "batching.json", json.dumps(rows, indent=1))
    print("| small requests | requests/s | p50 ms | p99 ms | answered whole |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        share = f"{100 * row['whole'] / row['answers']:.1f}%"
        print(f"| {row['setting']} | {row['rate']:.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {share} |")


if __name__ == "__main__":
    main()
