"""From an event to weights that are served: the whole loop on one machine, under traffic; prints Markdown.

    python benchmarks/freshness.py --out runs/freshness

A small synthetic world is prepared and INFNet trained for one pass; ``infnet serve`` serves it, ``infnet update
--follow`` joins labels (attribution windows of a few seconds), trains on, compares, exports and publishes. Users ask
for pages and see ten items each; what they do depends on a hidden taste for each item, so that there is something to
learn. An impression's age, when the first model that has learnt from it (or from a
later one) is served, is its freshness.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from infnet.api import prepare, train
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.world import World, WorldConfig
from infnet.export.bundle import Bundle
from infnet.export.exporter import export_run
from infnet.schema import DatasetSpec
from infnet.serving.publication import ModelDirectory
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig
from local_service import served

PAGE, CANDIDATES = 10, 100


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the table as JSON")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=10.0, help="pages a second")
    parser.add_argument("--window-s", type=float, default=5.0, help="attribution window of every task")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between rounds of the update")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        live = directory / "live"
        ModelDirectory(live).publish(make_bundle(directory, options.window_s))
        with served(live, directory, []) as service:
            rows = watch(service.port, live, directory, options)
    write_atomically(options.out / "freshness.json", json.dumps(rows, indent=1))
    report(rows)


def make_bundle(directory: Path, window_s: float) -> Path:
    """Of INFNet after one pass over a small world."""
    world = World.create(WorldConfig(num_users=500, num_items=500, num_days=4))
    write_world(world, directory / "raw")
    declared = known_spec("synthetic").model_dump(mode="json")
    tasks = [task | {"window_s": window_s} for task in declared["tasks"]]
    spec = DatasetSpec.model_validate(declared | {"tasks": tasks})
    prepare(spec, directory / "raw", directory / "prepared")
    config = TrainConfig(model="infnet", epochs=1, batch_size=256)
    run = train(Dataset.open(directory / "prepared"), config, directory / "run")
    return export_run(run, directory / "bundle").path


def watch(port: int, live: Path, directory: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Traffic and the loop for some minutes; a row per model that was served."""
    stop = threading.Event()
    traffic = threading.Thread(target=browse, args=(port, live, options.rate, stop))
    command = [
        *(sys.executable, "-m", "infnet", "update", str(live), "--events", str(directory / "events")),
        *("--to", str(live), "--follow", "--every", str(options.every), "--min-samples", "200", "--json"),
    ]
    rows, seen = [], None
    with (directory / "update.log").open("w") as log:
        traffic.start()
        update = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60 * options.minutes
            while time.monotonic() < end:
                time.sleep(0.1)
                version = ask(port, "/v1/model")["version"]
                if version != seen:
                    if seen is not None:
                        trained_to = Bundle.open(ModelDirectory(live).bundle_path(version)).manifest.trained_to_ms
                        rows.append({"version": version, "served_s": time.time(), "newest_s": trained_to / 1000})
                    seen = version
        finally:
            stop.set()
            traffic.join()
            update.terminate()
            update.wait(60)
    rounds = [json.loads(line) for line in (directory / "update.log").read_text().splitlines() if line[:1] == "{"]
    print(
        "\n".join(
            f"{turn['outcome']}: {turn['reason']}" for turn in rounds if turn["outcome"] not in ("waiting", "published")
        )
    )
    reports = {turn["version"]: turn for turn in rounds if turn["outcome"] == "published"}
    before = None
    for row in rows:
        turn = reports.get(row["version"], {"seconds": float("nan"), "report": None})
        row["seconds"] = turn["seconds"]
        row["rows"] = turn["report"]["rows"] if turn["report"] else None
        # What came just after the previous model's newest row has waited longest.
        row["newest_age_s"] = row["served_s"] - row["newest_s"]
        row["oldest_age_s"] = None if before is None else row["served_s"] - before
        before = row["newest_s"]
    return rows


def browse(port: int, live: Path, rate: float, stop: threading.Event) -> None:
    """Users look at pages."""
    current = ModelDirectory(live).current()
    assert current is not None
    bundle, rng = Bundle.open(current), np.random.default_rng(0)
    tasks = {task.name: task.kind for task in bundle.layout.tasks}
    keys = bundle.items.keys(np.arange(1, len(bundle.items) + 1))
    taste = dict(zip(keys, rng.normal(0, 1, len(keys)).tolist(), strict=True))
    number = 0
    while not stop.is_set():
        began = time.monotonic()
        number += 1
        user = bundle.users.key(int(rng.integers(1, len(bundle.users) + 1)))
        items = bundle.items.keys(rng.choice(len(bundle.items), CANDIDATES, replace=False) + 1)
        body = {"request_id": f"page-{number}", "user_id": user, "limit": PAGE, "item_ids": items}
        reply = ask(port, "/v1/rank", body | {"context": {"tab": int(rng.integers(0, 3))}})
        events = []
        for item in reply["items"]:
            about = {"request_id": reply["request_id"], "item_id": item["item_id"]}
            events.append(about | {"type": "impression"})
            for name, kind in tasks.items():
                if kind == "regression":
                    value = 10 * np.exp(0.5 * taste[item["item_id"]] + rng.normal(0, 0.5))
                    events.append(about | {"type": name, "value": value})
                elif rng.random() < 1 / (1 + np.exp(1 - taste[item["item_id"]])):
                    events.append(about | {"type": name})
        ask(port, "/v1/events", events)
        stop.wait(max(0.0, began + 1 / rate - time.monotonic()))


def ask(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=10) as answer:
        return json.load(answer)


def report(rows: list[dict[str, Any]]) -> None:
    whole = [row for row in rows if row["oldest_age_s"] is not None]
    if not whole:
        raise SystemExit("fewer than two models were published; give it more --minutes or another --rate")
    print("| | median | worst |")
    print("|---|---:|---:|")
    for title, name in (
        ("age of the newest impression when served, s", "newest_age_s"),
        ("age of the oldest new impression when served, s", "oldest_age_s"),
        ("seconds of a round", "seconds"),
        ("rows learnt from in a round", "rows"),
    ):
        values = [row[name] for row in whole if row[name] is not None]
        print(f"| {title} | {statistics.median(values):.1f} | {max(values):.1f} |")
    print(f"\n{len(rows)} models served.")


if __name__ == "__main__":
    main()
