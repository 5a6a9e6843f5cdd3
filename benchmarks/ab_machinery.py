"""Does the machinery of A/B tests keep its promises? Simulated users, known truths; prints Markdown.

    python benchmarks/ab_machinery.py --runs 1000

Users are as in reality: a few make most of the events (counts are negative binomial, the activity of a user a gamma
variable), events of one user are alike (each has a click rate of his own), and what a user did before says much of what
he does now. Four promises: tests without an effect reject in 5% of runs; intervals of known effects hold them in 95%;
the pre-period narrows intervals to sqrt(1 - rho^2); and whoever looks on 30 days is wrong in at most 5% of sequential
tests, where fixed ones are wrong in some 29%.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.experiments.analysis import Effect, analyse
from infnet.experiments.metrics import MetricSpec
from infnet.experiments.sequential import sequential_half_width, sequential_p
from infnet.experiments.settings import AnalysisSettings
from infnet.experiments.spec import Experiment
from infnet.experiments.user_table import UserTable

EXPERIMENT = Experiment.model_validate({"name": "simulated", "variants": [{"name": "control"}, {"name": "treatment"}]})
CLICKS = MetricSpec.model_validate({"name": "clicks_per_user", "numerator": "click"})
RATE = MetricSpec.model_validate(
    {"name": "click_rate", "kind": "ratio", "numerator": "click", "denominator": "impressions"}
)
METRICS = (CLICKS, RATE)
Z = 1.959964
_AT_ONCE = 200


def users(rng: np.random.Generator, number: int, lift: float = 0.0) -> pl.DataFrame:
    """Users, a half of them (by chance) in the treatment, which multiplies click rates by ``1 + lift``."""
    activity, rate = _people(rng, number)
    treated = rng.random(number) < 0.5
    columns = {}
    for suffix, factor in (("_before", 1.0), ("", np.where(treated, 1 + lift, 1.0))):
        impressions = rng.poisson(activity)
        columns["impressions" + suffix] = impressions.astype(float)
        columns["click" + suffix] = rng.binomial(impressions, rate * factor).astype(float)
    return pl.DataFrame({"variant": np.where(treated, "treatment", "control"), **columns})


def effects(frame: pl.DataFrame, **settings: object) -> list[Effect]:
    """Of both metrics, as any analysis gives them."""
    table = UserTable("simulated", frame)
    return analyse(table, EXPERIMENT, METRICS, AnalysisSettings(**settings)).effects


def rejections(runs: int, number: int, seed: int, **settings: object) -> NDArray[np.float64]:
    """Share of runs without an effect in which each metric rejects, (2,)."""
    rng = np.random.default_rng(seed)
    alpha = AnalysisSettings(**settings).alpha
    found = [[e.compared.p_value < alpha for e in effects(users(rng, number), **settings)] for _ in range(runs)]
    return np.mean(found, axis=0)


def plain_rejections(runs: int, number: int, seed: int) -> NDArray[np.float64]:
    """The same by the formulas alone, which take no time, so that there can be more runs, (2,)."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(runs // _AT_ONCE + 1):
        arms = (new_users_daily(rng, _AT_ONCE, number // 2, 1) for _ in ("control", "treatment"))
        (control, c_variance), (treatment, t_variance) = (_moments(next(arm)) for arm in arms)
        found.append(np.abs(treatment - control) > Z * np.sqrt(c_variance + t_variance))
    return np.concatenate(found, axis=1).mean(axis=1)


def coverage(runs: int, number: int, lift: float, seed: int, **settings: object) -> NDArray[np.float64]:
    """Share of runs whose interval holds the lift, per metric, (2,)."""
    rng = np.random.default_rng(seed)
    found = [
        [e.compared.low <= lift <= e.compared.high for e in effects(users(rng, number, lift), **settings)]
        for _ in range(runs)
    ]
    return np.mean(found, axis=0)


def narrowing(runs: int, number: int, seed: int) -> tuple[float, float]:
    """How much the pre-period narrows intervals of clicks per user: found, and by theory."""
    rng = np.random.default_rng(seed)
    found, theory = [], []
    for _ in range(runs):
        frame = users(rng, number)
        found.append(effects(frame, looks="fixed")[0].compared.narrowed)
        rho = np.corrcoef(frame["click"], frame["click_before"])[0, 1]
        theory.append(math.sqrt(1 - rho**2))
    return float(np.mean(found)), float(np.mean(theory))


def new_users_daily(rng: np.random.Generator, runs: int, number: int, days: int) -> Iterator[NDArray[np.float64]]:
    """Day by day the sums (6, runs) of an arm whose users come once: so many new ones every day."""
    total = np.zeros((6, runs))
    for _ in range(days):
        activity, rate = _people(rng, (runs, number))
        impressions = rng.poisson(activity)
        total = total + _sums(impressions, rng.binomial(impressions, rate))
        yield total


def same_users_daily(rng: np.random.Generator, runs: int, number: int, days: int) -> Iterator[NDArray[np.float64]]:
    """Day by day the sums (6, runs) of an arm whose users are all there at once, and come back every day."""
    activity, rate = _people(rng, (runs, number))
    impressions, clicks = np.zeros((runs, number)), np.zeros((runs, number))
    for _ in range(days):
        today = rng.poisson(activity / days)
        impressions += today
        clicks += rng.binomial(today, rate)
        yield _sums(impressions, clicks)


Arrivals = Callable[[np.random.Generator, int, int, int], Iterator[NDArray[np.float64]]]


def peeking(
    arrivals: Arrivals, runs: int, number: int, days: int, seed: int, expected_effect: float = 0.1
) -> dict[str, NDArray[np.float64]]:
    """Share of runs without an effect that are ever called significant, per metric (2,), by kind of test.

    The expected effect is the one at which sequential tests of so few users are the least cautious.
    """
    rng = np.random.default_rng(seed)
    mixing = expected_effect**2
    ever = {"fixed": np.zeros((2, runs), bool), "sequential": np.zeros((2, runs), bool)}
    for control, treatment in zip(arrivals(rng, runs, number, days), arrivals(rng, runs, number, days), strict=True):
        c, c_variance = _moments(control)
        t, t_variance = _moments(treatment)
        difference, variance = t - c, c_variance + t_variance
        ever["fixed"] |= np.abs(difference) > Z * np.sqrt(variance)
        # Scaled by the control's mean, as an analysis does it.
        ever["sequential"] |= sequential_p(difference / c, variance / c**2, mixing) < 0.05
    return {name: found.mean(axis=1) for name, found in ever.items()}


def _people(rng: np.random.Generator, shape: int | tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Activity (impressions expected; a tenth of the users sees four tenths of them) and click rate of each."""
    return rng.gamma(0.7, 25.0, shape), rng.beta(2.0, 18.0, shape)


def _sums(impressions: NDArray[np.floating], clicks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Users, sums of clicks, impressions, their squares and their product, of each run: (6, runs)."""
    i, c = impressions.astype(float), clicks.astype(float)
    users_ = np.full(len(i), float(i.shape[1]))
    products = [np.einsum("rn,rn->r", one, other) for one, other in ((c, c), (i, i), (c, i))]
    return np.stack([users_, c.sum(axis=1), i.sum(axis=1), *products])


def _moments(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clicks per user and click rate, and the variances of both by the delta method, (2, runs) each."""
    n, c, i, cc, ii, ci = sums
    per_user, rate = c / n, c / i
    spread = cc - 2 * rate * ci + rate**2 * ii  # of clicks - rate * impressions, whose mean is 0
    variances = ((cc / n - per_user**2) / n, spread / n / n / (i / n) ** 2)
    return np.stack([per_user, rate]), np.stack(variances)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--users", type=int, default=2000, help="of a run, both variants together")
    parser.add_argument("--lift", type=float, default=0.1, help="relative; the known effect")
    parser.add_argument("--daily-users", type=int, default=100, help="of a variant, for the tests that are peeked at")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    runs, number, seed = options.runs, options.users, options.seed
    rows = []
    for name, settings in (
        ("fixed", {"looks": "fixed", "cuped": False}),
        ("fixed, pre-period", {"looks": "fixed"}),
        ("sequential, one look", {"looks": "sequential"}),
    ):
        rejected, covered = (
            rejections(runs, number, seed, **settings),
            coverage(runs, number, options.lift, seed + 1, **settings),
        )
        wanted = ("5%", "95%") if settings["looks"] == "fixed" else ("at most 5%", "at least 95%")
        rows.append((f"A/A tests that reject, {name}", wanted[0], rejected))
        rows.append((f"lift of {options.lift:.0%} inside its interval, {name}", wanted[1], covered))
    rows.append(
        (
            f"A/A tests that reject, fixed, {20 * runs:,} runs of the formulas alone",
            "5%",
            plain_rejections(20 * runs, number, seed),
        )
    )
    for name, arrivals in (("new users daily", new_users_daily), ("the same users daily", same_users_daily)):
        daily = options.daily_users if arrivals is new_users_daily else 5 * options.daily_users
        found = peeking(arrivals, runs, daily, options.days, seed + 2)
        rows.append((f"ever significant in {options.days} days, {name}, fixed", "", found["fixed"]))
        rows.append((f"ever significant in {options.days} days, {name}, sequential", "at most 5%", found["sequential"]))
    print(f"{runs:,} runs of {number:,} users; a share of 5% is known to ±{2 * math.sqrt(0.05 * 0.95 / runs):.1%}\n")
    print("| share of runs | wanted | clicks per user | click rate |")
    print("|---|---|---:|---:|")
    for name, wanted, values in rows:
        print(f"| {name} | {wanted} | {values[0]:.1%} | {values[1]:.1%} |")
    found, theory = narrowing(max(1, runs // 10), number, seed + 3)
    print(f"\nThe pre-period narrows intervals of clicks per user to {found:.3f}; sqrt(1 - rho^2) is {theory:.3f}.")
    wide = sequential_half_width(np.array([1.0]), 8.0, 0.05)[0]
    print(f"A sequential interval is {wide / Z:.2f} times as wide as a fixed one where it is narrowest.")


if __name__ == "__main__":
    main()
