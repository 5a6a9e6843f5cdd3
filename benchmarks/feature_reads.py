"""What a request asks of a feature store: a user's features and histories, and features of 500 items; prints Markdown.

    python benchmarks/feature_reads.py --out runs/feature_reads

Histories of 150 events in three behaviours, user features and one dynamic feature of every item are in the store; each
lookup is of another user and other items, after some that are not counted. Redis is a server on the same machine with
an append-only file, asked over loopback; the embedded store reads its own database. Every tenth lookup a click is
appended in between, since no store is read alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from infnet.serving.feature_store import open_store
from infnet.serving.feature_store.base import FeatureStore, HistoryEvent, Lookup
from infnet.training.checkpoint import write_atomically
from local_redis import running_redis

BEHAVIOURS = {"click": 50, "like": 50, "long_view": 50}
ITEMS, SLACK = 500, 50
WARM = 200
NOW_MS = 1_700_000_000_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table as JSON")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--lookups", type=int, default=5000)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as place, running_redis(Path(place) / "redis") as url:
        for title, target in (("embedded", Path(place) / "state"), ("Redis", url)):
            bounds = {name: length + SLACK for name, length in BEHAVIOURS.items()}
            with closing(open_store(target, bounds)) as store:
                fill(store, options.users, options.items)
                for dynamic in (True, False):
                    ms = read(store, options, dynamic=dynamic)
                    quantiles = {f"p{q}_ms": float(np.percentile(ms, q)) for q in (50, 99)}
                    rows.append({"store": title, "items": ITEMS if dynamic else 0, **quantiles, "max_ms": max(ms)})
    write_atomically(options.out / "feature_reads.json", json.dumps(rows, indent=1))
    print("| store | items with dynamic features | p50 ms | p99 ms | max ms |")
    print("|---|---:|---:|---:|---:|")
    for row in rows:
        print(f"| {row['store']} | {row['items']} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['max_ms']:.1f} |")


def fill(store: FeatureStore, num_users: int, num_items: int) -> None:
    """With as much as it keeps."""
    rng = np.random.default_rng(0)
    store.put_items({str(i): {"bid": float(i % 97) / 10, "quality": i % 5} for i in range(num_items)})
    store.put_users({str(u): {f"field{i}": (u * i) % 50 for i in range(20)} for u in range(num_users)})
    for user in range(num_users):
        events = [
            HistoryEvent(str(user), behaviour, str(rng.integers(num_items)), NOW_MS - 1000 * place, place)
            for behaviour, length in BEHAVIOURS.items()
            for place in range(length + SLACK)
        ]
        store.append(events)


def read(store: FeatureStore, options: argparse.Namespace, *, dynamic: bool) -> list[float]:
    """Milliseconds of each lookup."""
    rng, ms = np.random.default_rng(1), []
    for number in range(WARM + options.lookups):
        items = [*map(str, rng.choice(options.items, ITEMS, replace=False).tolist())] if dynamic else []
        user = str(rng.integers(options.users))
        before = dict.fromkeys(BEHAVIOURS, NOW_MS + number + 1)
        lookup = Lookup(user, items, before, BEHAVIOURS, request_id=f"{options.out}-{dynamic}-{number}")
        began = time.perf_counter()
        (found,) = store.fetch([lookup])
        ms.append(1000 * (time.perf_counter() - began))
        assert [len(history.items) for history in found.user.histories.values()] == [*BEHAVIOURS.values()]
        assert len(found.items) == len(items)
        if number % 10 == 0:
            store.append([HistoryEvent(user, "click", str(number), NOW_MS + number, 0)])
    return ms[WARM:]


if __name__ == "__main__":
    main()
