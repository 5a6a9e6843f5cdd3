"""What bundles of trained runs cost, in every precision: size, latency, throughput, memory, and the AUC it loses.

    python benchmarks/compression.py runs/infnet runs/din_dcnv2_ple --out runs/compression

Latency is of 500 candidates drawn at random for users drawn at random, raw keys in and predictions out, one thread,
each bundle in a process of its own. Memory is the process's peak above that of a process that has only imported the
package. AUC is over 20,000 evenly spaced test rows, scored by the bundle; loss is against the same run's float32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from infnet.errors import InfnetError
from infnet.evaluation.evaluate import open_dataset_of
from infnet.export.bundle import Bundle
from infnet.export.exporter import export_run, sampled_aucs
from infnet.serving.profile import peak_mb, profile_bundle
from infnet.training.checkpoint import write_atomically
from infnet.training.run import Run
from one_core import use_one_core

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16 tables": {"precision": "bf16"},
    "int8 tables": {"precision": "int8"},
    "int8 tables and products": {"precision": "int8", "int8_dense": True},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories that 'infnet train --out' wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory for bundles and compression.json")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--turns", type=int, default=3, help="times that all bundles are measured, one after the other")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    use_one_core()
    rows = [row for path in options.runs for row in bundles_of(Run.load(path), options.out)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        imported_mb = process.submit(peak_mb).result()
    for _ in range(options.turns):
        for row in rows:
            (cost,) = profile_bundle(Path(row["bundle"]), candidates=[options.candidates], threads=[1])
            row["costs"].append(cost.model_dump())
    write_atomically(options.out / "compression.json", json.dumps({"imported_mb": imported_mb, "rows": rows}, indent=1))
    report(rows, imported_mb)


def bundles_of(run: Run, out: Path) -> list[dict[str, Any]]:
    """One per way that does not lose too much; those that do are reported as refused."""
    rows = []
    dataset = open_dataset_of(run)
    for way, options in WAYS.items():
        place = out / f"{run.path.name}-{way.replace(' ', '-')}"
        try:
            bundle = export_run(run, place, **options)
        except InfnetError as error:
            print(f"{run.config.model}, {way}: {error}", file=sys.stderr)
            continue
        aucs = sampled_aucs(bundle.engine("onnx"), dataset, "test")
        rows.append(
            {
                "model": run.config.model,
                "way": way,
                "bundle": str(place),
                "tables_mb": size_mb(bundle, "tables/"),
                "bundle_mb": size_mb(bundle, ""),
                "valid_loss": bundle.manifest.loss,
                "test_auc": statistics.mean(aucs.values()),
                "costs": [],
            }
        )
    return rows


def size_mb(bundle: Bundle, prefix: str) -> float:
    return sum(record.size for name, record in bundle.manifest.files.items() if name.startswith(prefix)) / 1e6


def report(rows: list[dict[str, Any]], imported_mb: float | None) -> None:
    print("| model | | tables MB | bundle MB | p50 ms | p99 ms | requests/s | peak MB above import | test AUC | lost |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    first = {row["model"]: row["test_auc"] for row in reversed(rows) if row["way"] == "float32"}
    for row in rows:
        middle = {
            key: statistics.median(cost[key] for cost in row["costs"])
            for key in ("p50_ms", "p99_ms", "requests_per_s", "peak_mb")
        }
        cells = (
            f"{row['tables_mb']:.1f}",
            f"{row['bundle_mb']:.1f}",
            f"{middle['p50_ms']:.2f}",
            f"{middle['p99_ms']:.2f}",
            f"{middle['requests_per_s']:,.0f}",
            f"{middle['peak_mb'] - (imported_mb or 0):,.0f}",
            f"{row['test_auc']:.5f}",
            f"{first.get(row['model'], float('nan')) - row['test_auc']:+.5f}",
        )
        print(f"| {row['model']} | {row['way']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
