"""The service under steady traffic for a long time: memory, descriptors, errors; prints Markdown.

    python benchmarks/soak.py --out runs/soak --minutes 30
    python benchmarks/soak.py --out runs/soak_redis --minutes 30 --redis

Requests for pages and the events that follow them come at a fixed rate, of all users and items of a bundle with 60
fields, 150 events and width 16 (random weights); every third page is followed by a click and so by a longer history.
Resident memory and open descriptors of the service are read every few seconds. What a service remembers of the last
20,000 requests fills for the first 17 minutes; memory counts as flat if the line through it rises by less than 5% of
its level in the last third of the time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

from infnet.export.bundle import Bundle
from infnet.training.checkpoint import write_atomically
from local_redis import running_redis
from local_service import Local, served
from service_load import make_bundle

CANDIDATES, PAGE = 200, 10
FLAT = 0.05


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the readings as JSON")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="pages a second")
    parser.add_argument("--redis", action="store_true", help="features in Redis instead of the embedded store")
    parser.add_argument("--bundle", type=Path, help="another bundle; its users and items")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        directory = Path(place)
        bundle = options.bundle or make_bundle(directory)
        store = ["--store", stack.enter_context(running_redis(directory / "redis"))] if options.redis else []
        service = stack.enter_context(served(bundle, directory, store))
        found = soak(service, bundle, options)
        found["error_lines"] = service.log.count('"level": "error"')
    write_atomically(options.out / "soak.json", json.dumps(found, indent=1))
    print("| | |")
    print("|---|---:|")
    for name, value in found.items():
        if name != "readings":
            print(f"| {name.replace('_', ' ')} | {value} |")
    return found


def soak(service: Local, bundle: Path, options: argparse.Namespace) -> dict:
    """Traffic for some minutes; what it did to the service."""
    stop, statuses, degraded = threading.Event(), Counter[str](), Counter[str]()
    opened = Bundle.open(bundle)
    users = opened.users.keys(np.arange(1, len(opened.users) + 1))
    items = opened.items.keys(np.arange(1, len(opened.items) + 1))

    def browse(seed: int) -> None:
        rng, number = np.random.default_rng(seed), 0
        with httpx.Client(base_url=service.url, timeout=10) as client:
            while not stop.wait(2 / options.rate):
                number += 1
                page = f"{seed}-{number}"
                shown = [items[i] for i in rng.choice(len(items), min(CANDIDATES, len(items)), replace=False)]
                body = {"request_id": page, "user_id": users[rng.integers(len(users))], "item_ids": shown}
                answer = client.post("/v1/rank", json=body | {"limit": PAGE})
                statuses[f"rank {answer.status_code}"] += 1
                if answer.status_code != 200:
                    continue
                for step in answer.json()["degraded"]:
                    degraded[step] += 1
                seen = [item["item_id"] for item in answer.json()["items"]]
                events = [{"request_id": page, "item_id": item, "type": "impression"} for item in seen]
                if number % 3 == 0:
                    events.append({"request_id": page, "item_id": seen[0], "type": "click"})
                statuses[f"events {client.post('/v1/events', json=events).status_code}"] += 1

    threads = [threading.Thread(target=browse, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    began, readings = time.monotonic(), []
    length = 60 * options.minutes
    while (at := time.monotonic() - began) < length:
        readings.append((at, service.resident_mb, service.num_descriptors))
        time.sleep(max(1.0, length / 200))
    stop.set()
    for thread in threads:
        thread.join()
    times, memory, descriptors = np.array(readings).T
    begins = 2 / 3 * length
    late = times > begins
    slope, level = np.polyfit(times[late], memory[late], 1)
    growth = slope * (length - begins) / (level + slope * begins)
    return {
        "minutes": options.minutes,
        "statuses": dict(statuses),
        "degraded": dict(degraded),
        "resident_MB_at_the_beginning": round(float(memory[0]), 1),
        "resident_MB_after_two_thirds": round(float(memory[late][0]), 1),
        "resident_MB_at_the_end": round(float(memory[-1]), 1),
        "growth_since": round(float(growth), 4),
        "is_flat": bool(growth < FLAT),
        "descriptors_after_two_thirds": int(descriptors[late][0]),
        "descriptors_at_the_end": int(descriptors[-1]),
        "readings": readings,
    }


if __name__ == "__main__":
    main()
