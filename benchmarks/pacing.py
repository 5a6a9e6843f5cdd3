"""What pacing makes of a day's budgets: a table of what was planned and spent by the hour, and a figure.

    python benchmarks/pacing.py --requests 10000 --methods bid throttle --figure pacing.png

Campaigns with bids of their own compete for the positions of a day's requests, which come more often in the evening.
The auctions are those of a policy, each impression is seen at once, and spending is kept in an embedded feature store,
which is read once a second as in the service. The first campaigns have budgets that they would spend long before the
evening; the table sums them up. Without pacing they bid in full until nothing is left.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infnet.data.layout import TaskLayout
from infnet.ranking.ads.market import Standing
from infnet.ranking.ads.pacing import Pacer
from infnet.ranking.policy import Policy
from infnet.serving.feature_store.accounts import Charge, exposure_id
from infnet.serving.feature_store.embedded import EmbeddedStore

TRAFFIC = (2, 1, 0.6, 0.4, 0.4, 0.6, 1.2, 2.5, 4, 5, 5, 5, 5.5, 5.5, 5, 5, 5, 5.5, 6.5, 8, 9, 8.5, 6.5, 4)
DAY_S = 86_400.0
MIDNIGHT_S = time.time() // DAY_S * DAY_S  # stores forget the accounts of earlier days
POLICY = """
inputs: {{bid: {{item: bid, range: [0, 100]}}}}
objectives: {{engagement: {{formula: p_click}}}}
ads: {{bid: bid * p_click, click: p_click, reserve: 0.001, budget: budget, campaign: campaign, pacing: {pacing}}}
constraints: [{{ad_load: {{at_most: 1, per: 5, first: 3}}}}]
"""
PACINGS = {
    "none": "{first: 1.0, lowest: 0.999, proportional: 0, integral: 0}",
    "bid": f"{{method: bid, hourly_traffic: {list(TRAFFIC)}}}",
    "throttle": f"{{method: throttle, hourly_traffic: {list(TRAFFIC)}}}",
}
PACED = 5
"""Campaigns with a budget that is too small to bid in full all day."""


def spent_by_hour(
    method: str, num_requests: int, budgets: Sequence[float], directory: Path, seed: int
) -> NDArray[np.float64]:
    """What each paced campaign has spent by the end of each hour, (24, PACED).

    Args:
        method: Of pacing.
        num_requests: Of the day.
        budgets: Of the paced campaigns.
        directory: Of the store.
        seed: Of requests and predictions.
    """
    policy = Policy.parse(
        POLICY.format(pacing=PACINGS[method]), [TaskLayout(name="click", kind="binary", loss="bce")], method
    )
    assert policy.ads is not None
    rng, pacer = np.random.default_rng(seed), Pacer(policy.ads.spec.pacing)
    hours = rng.choice(24, num_requests, p=np.array(TRAFFIC) / sum(TRAFFIC))
    times = np.sort(hours + rng.random(num_requests)) * 3600
    num_ads = 2 * PACED
    own_bid = rng.uniform(0.5, 1.5, num_ads)
    items = {
        "is_ad": [True] * num_ads,
        "bid": own_bid.tolist(),
        "campaign": [f"c{number}" for number in range(num_ads)],
        "budget": [*budgets, *[1e9] * PACED],
    }
    curve, day_ms = np.zeros((24, PACED)), pacer.day_start_ms(MIDNIGHT_S)
    store = EmbeddedStore(directory, {})
    spent, read_s = dict[str, float](), -1.0
    for number, second in enumerate(times.tolist()):
        if second - read_s >= 1.0:
            (spent,), read_s = store.accounts.spent([day_ms]), second
        clicks = np.clip(rng.lognormal(-4, 0.5, num_ads), 0, 1)
        columns = policy.score({"click": clicks}, items).columns
        standing = Standing(MIDNIGHT_S + second, spent, {}, number)
        sold = policy.ads.market(columns, items, np.ones(num_ads, dtype=np.bool_), pacer, standing).auction
        charges = []
        for place, price in zip(sold.winners[:2].tolist(), sold.price_per_impression[:2].tolist(), strict=True):
            charges.append(Charge(exposure_id(str(number), str(place)), f"c{place}", day_ms, price))
            if place < PACED:
                curve[int(second / 3600), place] += price
        store.accounts.charge(charges)
    (kept,) = store.accounts.spent([day_ms])
    store.close()
    told = [kept.get(f"c{number}", 0.0) for number in range(PACED)]
    assert np.allclose(told, curve.sum(axis=0)), "the store's accounts differ from what was sold"
    return curve.cumsum(axis=0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--methods", nargs="+", default=["none", "bid", "throttle"], choices=PACINGS)
    parser.add_argument("--share", type=float, default=0.4, help="budgets over what bidding in full all day would cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="PNG to write (needs matplotlib)")
    options = parser.parse_args(arguments)
    curves = {}
    with tempfile.TemporaryDirectory() as directory:
        free = spent_by_hour("none", options.requests, [1e9] * PACED, Path(directory) / "free", options.seed)
        budgets = (options.share * free[-1]).tolist()
        for method in options.methods:
            spent = spent_by_hour(method, options.requests, budgets, Path(directory) / method, options.seed)
            curves[method] = spent.sum(axis=1) / sum(budgets)
    planned = np.cumsum(TRAFFIC) / sum(TRAFFIC)
    print(f"{options.requests} requests, {PACED} paced campaigns, budgets {options.share:g} of what they could spend\n")
    print("| until hour | planned | " + " | ".join(f"{method}: spent" for method in curves) + " |")
    print("|---:|---:|" + "---:|" * len(curves))
    for hour in range(24):
        cells = [f"{planned[hour]:.1%}", *(f"{curve[hour]:.1%}" for curve in curves.values())]
        print(f"| {hour + 1} | " + " | ".join(cells) + " |")
    for method, curve in curves.items():
        furthest = np.abs(curve - planned).max()
        print(f"\n{method}: {curve[-1]:.1%} of the budgets spent, at most {furthest:.1%} of them away from the plan")
    if options.figure is not None:
        _draw(planned, curves, options.figure)


def _draw(planned: NDArray[np.float64], curves: dict[str, NDArray[np.float64]], path: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("matplotlib is missing; install it, or leave out --figure") from None
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(range(1, 25), 100 * planned, "k--", label="planned")
    for method, curve in curves.items():
        axes.plot(range(1, 25), 100 * curve, label=method)
    axes.set(xlabel="hour of the day", ylabel="% of the budgets spent")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
