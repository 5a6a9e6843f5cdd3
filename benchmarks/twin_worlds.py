"""Do A/B tests tell the truth of a real service? The same simulated users live once with each variant; prints Markdown.

    python benchmarks/twin_worlds.py --world raw --model bundle --control old.yaml --treatment new.yaml --out runs/twins

Each of two simulations over HTTP gives everybody one variant, so that for every user both outcomes are known, and with
them the true effect. Then users are split by chance, again and again, each shown the outcome of his side, and analysed:
tests of a variant against itself have to reject in 5% of runs, and intervals have to hold the true lift in 95% (or
more: what is known of the other outcome is not used). The week before is the world's own log.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from infnet.data.sources.exposure import DAY_MS
from infnet.data.sources.synthetic import load_world
from infnet.data.sources.world import World
from infnet.experiments.analysis import Effect, analyse
from infnet.experiments.experiment_log import ExperimentLog
from infnet.experiments.metrics import MetricSpec, parse_metric
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import UserTable
from infnet.simulation.client import ServiceClient
from infnet.simulation.local_service import LocalService
from infnet.simulation.settings import SimulationSettings
from infnet.simulation.simulator import Simulator

EXPERIMENT = Experiment.model_validate({"name": "twins", "variants": [{"name": "control"}, {"name": "treatment"}]})
METRICS = tuple(
    map(
        parse_metric,
        (
            "ctr=click/impressions",
            "clicks=click",
            "watch_time=watch_time.value",
            "long_views=long_view",
            "active_days=active_days",
        ),
    )
)
PRE_DAYS = 7


def outcomes(world: World, options: argparse.Namespace, policy: Path, out: Path) -> pl.DataFrame:
    """By user, in their order, what came of living with a policy."""
    num_users = min(options.users or world.config.num_users, world.config.num_users)
    settings = SimulationSettings(num_users=num_users, num_days=options.days, seed=options.seed)
    made, wanted = out / "made.json", settings.model_dump_json() + policy.read_text()
    if made.exists() and made.read_text() != wanted:
        raise SystemExit(f"{out} holds an event log of other settings or of another policy; give another --out")
    if not made.exists():
        with (
            LocalService(options.model, out / "events", out, ["--policy", str(policy)]) as service,
            ServiceClient(service.url) as client,
        ):
            Simulator(world, client, settings).run()
        made.write_text(wanted)
    log = ExperimentLog.read(out / "events", None)
    days = log.requests.group_by("user_id").agg(active_days=(pl.col("time_ms") // DAY_MS).n_unique())
    return _by_user(log.events, [str(user) for user in range(num_users)]).join(days, "user_id", "left").fill_null(0)


def before(raw: Path, users: list[str], world: World) -> pl.DataFrame:
    """By user, the same of the last days of the world's log."""
    since = world.first_ms() + (world.config.num_days - PRE_DAYS) * DAY_MS
    log = pl.scan_parquet(raw / "data" / "log_*.parquet").filter(pl.col("time_ms") >= since)
    sums = (
        log.group_by(user_id=pl.col("user_id").cast(pl.String))
        .agg(
            pl.col("is_click").sum().cast(pl.Float64).alias("click"),
            pl.len().cast(pl.Float64).alias("impressions"),
            (pl.col("play_time_ms").sum() / 1000).alias("watch_time.value"),
            pl.col("long_view").sum().cast(pl.Float64),
            (pl.col("time_ms") // DAY_MS).n_unique().cast(pl.Float64).alias("active_days"),
        )
        .collect()
    )
    found = pl.DataFrame({"user_id": users}).join(sums, "user_id", "left").fill_null(0.0)
    return found.select(pl.exclude("user_id").name.suffix("_before"))


def _by_user(events: pl.DataFrame, users: list[str]) -> pl.DataFrame:
    sums = events.group_by("user_id").agg(
        (pl.col("type") == "click").sum().cast(pl.Float64).alias("click"),
        (pl.col("type") == "impression").sum().cast(pl.Float64).alias("impressions"),
        pl.col("value").filter(pl.col("type") == "watch_time").sum().alias("watch_time.value"),
        (pl.col("type") == "long_view").sum().cast(pl.Float64).alias("long_view"),
    )
    return pl.DataFrame({"user_id": users}).join(sums, "user_id", "left").fill_null(0.0)


def true_lift(metric: MetricSpec, control: pl.DataFrame, treatment: pl.DataFrame) -> float:
    """Of everybody under the treatment over everybody under the control."""

    def value(frame: pl.DataFrame) -> float:
        below = frame.height if metric.denominator is None else frame[metric.denominator.column].sum()
        return float(frame[metric.numerator.column].sum() / below)

    return value(treatment) / value(control) - 1


def effects(control: pl.DataFrame, treatment: pl.DataFrame, treated: np.ndarray, **settings: object) -> list[Effect]:
    """Of one split: treated users (n,) show what the treatment made of them."""
    side = pl.Series(treated)
    columns = [
        pl.select(pl.when(side).then(treatment[name]).otherwise(control[name]).alias(name)).to_series()
        for name in control.columns
    ]
    frame = pl.DataFrame([pl.Series("variant", np.where(treated, "treatment", "control")), *columns])
    return analyse(UserTable("twins", frame), EXPERIMENT, METRICS, AnalysisSettings(**settings)).effects


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="directory of 'infnet data synthesize'")
    parser.add_argument("--model", type=Path, required=True, help="bundle that scores for both")
    parser.add_argument("--control", type=Path, required=True, help="policy")
    parser.add_argument("--treatment", type=Path, required=True, help="policy")
    parser.add_argument("--users", type=int, default=None)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="keep both event logs here, and use those that are here")
    options = parser.parse_args(arguments)
    world = load_world(options.world)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        control, treatment = (
            outcomes(world, options, policy, out / name)
            for name, policy in (("control", options.control), ("treatment", options.treatment))
        )
    pre = before(options.world, control["user_id"].to_list(), world)
    control, treatment = (
        pl.concat([frame.drop("user_id").cast(pl.Float64), pre], how="horizontal") for frame in (control, treatment)
    )
    lifts = [true_lift(metric, control, treatment) for metric in METRICS]
    rng, rows = np.random.default_rng(options.seed), []
    for name, settings in (
        ("fixed", {"looks": "fixed", "cuped": False}),
        ("fixed, pre-period", {"looks": "fixed"}),
        ("sequential, one look", {"looks": "sequential"}),
    ):
        rejected, covered, narrowed = [], [], []
        for _ in range(options.runs):
            treated = rng.random(control.height) < 0.5
            same, found = (
                effects(control, control, treated, **settings),
                effects(control, treatment, treated, **settings),
            )
            rejected.append([effect.compared.p_value < 0.05 for effect in same])
            covered.append([e.compared.low <= lift <= e.compared.high for e, lift in zip(found, lifts, strict=True)])
            narrowed.append([effect.compared.narrowed for effect in same])
        rows.append((f"A/A tests that reject, {name}", [f"{share:.1%}" for share in np.mean(rejected, axis=0)]))
        rows.append((f"true lift inside its interval, {name}", [f"{share:.1%}" for share in np.mean(covered, axis=0)]))
        if name == "fixed, pre-period":
            rows.append(("width of intervals with the pre-period", [f"{w:.3f}" for w in np.mean(narrowed, axis=0)]))
    theory = [
        f"{math.sqrt(1 - np.corrcoef(control[m.numerator.column], control[m.numerator.pre_column])[0, 1] ** 2):.3f}"
        if m.denominator is None
        else ""
        for m in METRICS
    ]
    rows.append(("sqrt(1 - rho^2)", theory))
    print(f"{control.height:,} users, {options.days} days, {options.runs:,} splits\n")
    print("| | " + " | ".join(metric.name for metric in METRICS) + " |")
    print("|---|" + "---:|" * len(METRICS))
    for name, values in (("true lift", [f"{lift:+.2%}" for lift in lifts]), *rows):
        print(f"| {name} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
