"""How good named settings are on the test split, over several seeds; prints a Markdown table and writes JSON.

    python benchmarks/accuracy.py PREPARED --out runs/accuracy
    python benchmarks/accuracy.py RAW --spec kuairand-pure --history FILE --valid-from 2022-05-05 --test-from 2022-05-06
        --out runs/accuracy

A setting is the name of a file in configs/, or a path. Each is trained once per seed, stops early and keeps its best
checkpoint by validation alone; the test split is read once, at the end, by that checkpoint. A second call goes on where
the first was interrupted and trains nothing twice; after a change of settings it asks for another --out. Means are over
seeds, with the standard deviation of a single run (n - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

from infnet.api import evaluate, prepare, train
from infnet.data.dataset import Dataset
from infnet.data.sources.known import known_spec, known_specs
from infnet.errors import InfnetError
from infnet.schema import load_spec
from infnet.training.checkpoint import write_atomically
from infnet.training.config import load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHOWN = {"auc": "AUC", "gauc": "gAUC", "r2": "R2"}


def open_data(options: argparse.Namespace) -> Dataset:
    """The prepared dataset, made below --out first if raw files are given."""
    if options.spec is None or (options.data / "manifest.json").is_file():
        return Dataset.open(options.data)
    prepared = options.out / "prepared"
    if not (prepared / "manifest.json").is_file():
        spec = known_spec(options.spec) if options.spec in known_specs() else load_spec(Path(options.spec))
        if options.valid_from is not None:
            spec = spec.with_split(options.valid_from, options.test_from)
        if options.delay_s is not None:
            spec = spec.with_delay(options.delay_s)
        prepare(spec, options.data, prepared, history=options.history)
    return Dataset.open(prepared)


def train_and_judge(dataset: Dataset, setting: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: what it measures on the test split, and what it cost."""
    path = CONFIGS / f"{setting}.yaml"
    path = path if path.is_file() else Path(setting)
    config = load_config(path, options.set, seed=seed)
    run = train(dataset, config, options.out / f"{path.stem}-seed{seed}", resume=True)
    found = evaluate(run, options.split).as_json()
    report = run.report
    cost = {name: report[name] for name in ("epochs", "steps", "train_s", "rows_per_s")}
    best = report["best"]
    print(
        f"{path.stem}, seed {seed}: best {report['monitor']} {best['value']:.4f} after epoch {best['epoch']:g}, "
        f"{report['train_s']:.0f} s of training",
        file=sys.stderr,
    )
    return {"model": path.stem, "seed": seed, "tasks": found["tasks"], "mean": found["mean"], "cost": cost}


def columns_of(result: dict[str, Any]) -> dict[str, float | None]:
    """``click AUC``, .., ``mean gAUC`` of one run."""
    parts = {**result["tasks"], "mean": result["mean"]}
    return {
        f"{part} {title}": metrics[name]
        for part, metrics in parts.items()
        for name, title in SHOWN.items()
        if name in metrics
    }


def cell(values: list[float | None]) -> str:
    """``mean ± deviation``."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "undefined"
    spread = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{spread}"


def table(results: list[dict[str, Any]]) -> str:
    """A line per setting."""
    by_model: dict[str, list[dict[str, float | None]]] = {}
    for result in results:
        by_model.setdefault(result["model"], []).append(columns_of(result))
    titles = list(columns_of(results[0]))
    lines = ["| setting | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for model, runs in by_model.items():
        lines.append(f"| {model} | " + " | ".join(cell([run[title] for run in runs]) for title in titles) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared dataset, or raw files with --spec")
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs and of accuracy.json")
    parser.add_argument("--settings", nargs="+", default=["paper", "default", "shared_bottom"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; repeatable")
    parser.add_argument("--spec", help="YAML file or name of a known dataset, to prepare raw files")
    parser.add_argument("--history", type=Path)
    parser.add_argument("--delay-s", type=float, help="seconds after which events are seen, if not the spec's")
    parser.add_argument("--valid-from", type=date.fromisoformat)
    parser.add_argument("--test-from", type=date.fromisoformat)
    options = parser.parse_args(arguments)
    if (options.valid_from is None) != (options.test_from is None):
        parser.error("--valid-from and --test-from go together")
    dataset = open_data(options)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:  # seed by seed: what is there after an interruption can be compared
        for setting in options.settings:
            results.append(train_and_judge(dataset, setting, seed, options))
            write_atomically(options.out / "accuracy.json", json.dumps(results, indent=1) + "\n")
    manifest = dataset.manifest
    print(
        f"{manifest.name}, split {options.split}: {dataset.num_rows(options.split):,} rows; "
        f"seeds {', '.join(map(str, options.seeds))}; dataset {manifest.fingerprint[:12]}\n"
    )
    print(table(results))


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
