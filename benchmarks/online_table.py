"""Fourteen days of INFNet against DIN+DCNv2+PLE before simulated users, beside what the paper reports; prints Markdown.

    python benchmarks/online_table.py --out runs/online --users 10000

Makes a synthetic world, trains both models on its log with the same settings, each until its validation falls,
calibrates both, and lets half of its users live with each for so many days, through the real service over HTTP, under
one policy. What a table of online results holds then comes from the service's event log, by the analysis of ``infnet ab
report``; beside it stands the true effect, which only a simulation knows. Everything is kept in ``--out``; what is
there is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import yaml

from infnet.experiments.analysis import analyse
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.reading import DECLARED, load_experiments
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.user_table import user_table
from infnet.experiments.verdict import judge, relative_text
from infnet.serving.ranker import Ranker

MODELS = {"baseline": "din_dcnv2_ple", "infnet": "infnet"}
PUBLISHED = {"ctr": "+1.23%", "watch_time": "+2.63%", "revenue": "+1.59%", "return_next_day": "+0.85%"}
"""Lifts of INFNet over DIN+DCNv2+PLE, arXiv 2508.11565."""
NAMES = {
    "ctr": "click rate",
    "watch_time": "watch time per user",
    "revenue": "revenue per user",
    "return_next_day": "return on the next day",
    "satisfaction": "satisfaction (long views per impression)",
    "latency": "mean ms in the service, of requests that wait for each other",
}
POLICY = {
    "name": "feed",
    "objectives": {
        "engagement": {"formula": "p_click + p_long_view + 3 * p_like", "weight": 1.0},
        "time": {"formula": "watch_time / 30", "weight": 1.0},
        "revenue": {"formula": "revenue", "weight": 0.2},
    },
}


def infnet(*arguments: object) -> None:
    """The command line, in a process of its own."""
    print("$ infnet", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "infnet", *map(str, arguments)], check=True, stdout=sys.stderr)


def spec_with_revenue(path: Path) -> Path:
    """The synthetic world's spec, which leaves revenue out, with a task for it."""
    spec = yaml.safe_load(resources.files("infnet.data.specs").joinpath("synthetic.yaml").read_text())
    spec["tasks"] = [*spec["tasks"], {"name": "revenue", "label": "revenue", "kind": "regression", "clip": 100}]
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def make(out: Path, options: argparse.Namespace) -> None:
    """World, dataset, runs and the simulation."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "raw").exists():
        size = ("--users", options.users, "--items", options.items, "--days", options.log_days, "--seed", options.seed)
        infnet("data", "synthesize", *size, "--out", out / "raw")
    if not (out / "prepared").exists():
        infnet("prepare", spec_with_revenue(out / "spec.yaml"), "--raw", out / "raw", "--out", out / "prepared")
    for name, model in MODELS.items():
        run, bundle = out / f"run-{name}", out / f"bundle-{name}"
        if not (run / "report.json").exists():
            infnet(
                *("train", out / "prepared", "--model", model, "--out", run, "--epochs", options.epochs),
                *("--set", f"train.batch_size={options.batch}", "--set", f"train.learning_rate={options.rate}"),
                *("--set", f"train.embedding_learning_rate={3 * options.rate}", "--set", "train.patience=1"),
            )
        if not bundle.exists():
            infnet("export", run, "--out", bundle, "--calibrate", "isotonic")
    (out / "policy.yaml").write_text(yaml.safe_dump(POLICY, sort_keys=False))
    if not (out / "events" / "simulation" / "simulation.json").exists():
        infnet(
            *("simulate", "--world", out / "raw", "--days", options.days, "--out", out / "events"),
            *("--experiment", f"ranker:baseline={out / 'bundle-baseline'},infnet={out / 'bundle-infnet'}"),
            *("--policy", out / "policy.yaml", "--candidates", options.candidates),
            *("--update-every", options.update_every),
        )


def throughput(
    bundles: Sequence[Path], num_candidates: int, seconds: float = 2.0, rounds: int = 9
) -> list[list[float]]:
    """Requests a second that one thread scores, one by one, of each bundle; they take turns, a round each."""
    rankers, found = [Ranker.load(bundle) for bundle in bundles], [[] for _ in bundles]
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for ranker, rates in zip(rankers, found, strict=True):
            users, items = ranker.bundle.users, ranker.bundle.items
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                wanted = items.keys(rng.integers(1, len(items) + 1, num_candidates))
                ranker.score(users.key(int(rng.integers(1, len(users) + 1))), wanted)
                done += 1
            rates.append(done / (time.perf_counter() - began))
    return found


def table(out: Path, num_candidates: int) -> str:
    """Of the effects, with intervals, in Markdown."""
    events = out / "events"
    told = json.loads((events / "simulation" / "simulation.json").read_text())
    experiment = load_experiments(events / DECLARED).experiment("ranker")
    users = user_table(ExperimentLog.read(events, "ranker"), experiment, experiment.metrics)
    analysis = analyse(users, experiment, experiment.metrics, AnalysisSettings(looks="fixed"))
    verdict = judge(analysis)
    base, ours = (told["variants"][name] for name in ("baseline", "infnet"))
    lines = [
        f"{told['users']:,} users on {told['user_days']:,} days, {told['requests']:,} requests, "
        f"{told['impressions']:,} impressions; {told['user_days_per_s']:,.0f} users a second.",
        "",
        "| | DIN+DCNv2+PLE | INFNet | change (95%) | p, corrected | true change | published |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for effect in analysis.effects:
        name = effect.metric.name
        if name not in NAMES or effect.compared is None:
            continue
        true = f"{ours['true'][name] / base['true'][name] - 1:+.2%}" if name in base["true"] else ""
        p_value = "" if effect.metric.is_guardrail else f"{effect.corrected_p:.3f}"
        lines.append(
            f"| {NAMES[name]} | {effect.compared.control:.4g} | {effect.compared.treatment:.4g} | "
            f"{relative_text(effect)} | {p_value} | {true} | {PUBLISHED.get(name, '')} |"
        )
    for part in ("p50_ms", "p99_ms"):
        what = f"latency of a request alone, as the client sees it, {part[:-3]}"
        lines.append(
            f"| {what} | {base[part]:.1f} ms | {ours[part]:.1f} ms | {ours[part] / base[part] - 1:+.0%} | | | |"
        )
    rates = throughput([out / f"bundle-{name}" for name in MODELS], num_candidates)
    ratios = [b / a - 1 for a, b in zip(*rates, strict=True)]
    lines.append(
        f"| requests a second of one thread | {statistics.median(rates[0]):.0f} | {statistics.median(rates[1]):.0f} | "
        f"{statistics.median(ratios):+.0%} ({min(ratios):+.0%} to {max(ratios):+.0%} in {len(ratios)} turns) | | | |"
    )
    lines += ["", f"Verdict: {verdict.outcome}.", *(f"- {reason}" for reason in verdict.reasons)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--log-days", type=int, default=10)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--update-every", type=int, default=5, help="days between two updates of both models")
    parser.add_argument("--epochs", type=int, default=10, help="at most; training stops when validation falls")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    make(options.out, options)
    print(table(options.out, options.candidates))


if __name__ == "__main__":
    main()
