"""How near models come to the truth: click AUC on a synthetic world beside that of its true probabilities.

    python benchmarks/ceiling.py --out runs/ceiling --drift 0

The world is `infnet data synthesize`'s, with few users who come often: a million rows of 300 users on 300 items, so
that what a user likes can be known at all. The position, which the truth knows, is a field of the request here. All
models are trained by the same recipe, several passes over the data, and judged on the last tenth of the rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import polars as pl

from infnet.api import evaluate, prepare, train
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec
from infnet.data.sources.synthetic import write_world
from infnet.data.sources.truth import best_auc
from infnet.data.sources.world import World, WorldConfig
from infnet.errors import InfnetError
from infnet.features import CategoryFeature
from infnet.training.config import load_config

RECIPE = (
    "train.epochs=8",
    "train.batch_size=1024",
    "train.learning_rate=2e-3",
    "train.embedding_learning_rate=1e-2",
    "train.schedule=cosine",
)


def open_world(options: argparse.Namespace) -> tuple[Dataset, float]:
    """The prepared world, made first if it is not there, and the truth's click AUC on its test rows."""
    raw, prepared = options.out / "raw", options.out / "prepared"
    if not (raw / "world.json").is_file():
        world = WorldConfig(
            num_users=options.users,
            num_items=options.items,
            num_days=options.days,
            drift=options.drift,
            sessions_per_day=12,
            session_length=20,
        )
        print(write_world(World.create(world), raw), file=sys.stderr)
    if not (prepared / "manifest.json").is_file():
        spec = known_spec("synthetic")
        position = CategoryFeature(name="position", side="candidate")
        prepare(spec.model_copy(update={"features": [*spec.features, position]}), raw, prepared)
    dataset = Dataset.open(prepared)
    first = int(dataset.rows("test").time.min())
    return dataset, best_auc(raw, (pl.col("time_ms") >= first) & (pl.col("is_rand") == 0))["click"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the world and the runs")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--days", type=int, default=105)
    parser.add_argument("--drift", type=float, default=1.0, help="how far interests swing")
    parser.add_argument("--models", nargs="+", default=["infnet"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; repeatable")
    options = parser.parse_args(arguments)
    dataset, truth = open_world(options)
    lines = []
    for model in options.models:
        config = load_config(None, [*RECIPE, *options.set], model=model)
        run = train(dataset, config, options.out / model, resume=True)
        click = evaluate(run, "test").as_json()["tasks"]["click"]
        lines.append(f"| {model} | {click['auc']:.4f} | {truth - click['auc']:.4f} |")
    rows = sum(dataset.num_rows(split) for split in ("train", "valid", "test"))
    print(f"{rows:,} rows, drift {options.drift:g}\n\n| | click AUC, test | below the truth |\n|---|---:|---:|")
    print(f"| true probabilities | {truth:.4f} | |")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
