"""What came of a simulation: the truth by variant, and how fast the service was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from infnet.evaluation.plain_table import text_table
from infnet.simulation.simulator import Simulator

__all__ = ["as_text", "summary", "true_values"]

_PER_IMPRESSION = {"ctr": "clicks", "satisfaction": "long_views", "hides": "hates"}
_PER_USER = {"watch_time": "watch_s", "revenue": "revenue"}


def true_values(ledger: pl.DataFrame) -> dict[str, float]:
    """What was to be expected of the pages that users were shown, by the names of
    :data:`infnet.simulation.variants.METRICS`; of some rows of a ledger."""
    total = ledger.select(pl.col(pl.Float64).sum()).row(0, named=True)
    num_users, shown = max(ledger["user_id"].n_unique(), 1), max(total["impressions"], 1.0)
    return {
        **{metric: total[column] / shown for metric, column in _PER_IMPRESSION.items()},
        **{metric: total[column] / num_users for metric, column in _PER_USER.items()},
        "return_next_day": float(ledger["p_return"].to_numpy().sum(dtype=np.float64)) / max(ledger.height, 1),
    }


def summary(
    simulator: Simulator, variants: Sequence[str], seconds: float, updates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All of it, as JSON can hold it.

    Args:
        simulator: That has run.
        variants: Of the experiment, the control first; none without one.
        seconds: How long, without updates.
        updates: By time, what ``infnet update`` said of each.
    """
    ledger, speed = simulator.ledger.table(), simulator.speed
    groups = {"all": ledger} | {variant: ledger.filter(pl.col("variant") == variant) for variant in variants}
    return {
        "user_days": ledger.height,
        "users": ledger["user_id"].n_unique(),
        "requests": int(ledger["requests"].sum()),
        "impressions": int(ledger["impressions"].sum()),
        "events": speed.events,
        "degraded": speed.degraded,
        "seconds": seconds,
        "user_days_per_s": ledger.height / seconds,
        "requests_per_s": speed.requests / speed.ranking_s if speed.ranking_s else None,
        "events_per_s": speed.events / speed.telling_s if speed.telling_s else None,
        "variants": {
            name: {
                "users": rows["user_id"].n_unique(),
                "user_days": rows.height,
                "true": true_values(rows),
                **_latencies(speed.latencies_ms.get(name, [])),
            }
            for name, rows in groups.items()
        },
        "updates": [*updates],
    }


def as_text(told: Mapping[str, Any]) -> str:
    """The summary for people, with each variant's lift over the control."""
    lines = [
        f"{told['users']:,} users came on {told['user_days']:,} days, asked for {told['requests']:,} pages, saw "
        f"{told['impressions']:,} items and sent {told['events']:,} events",
        f"{told['user_days_per_s']:,.0f} users a second over {told['seconds']:,.0f} s; while asked, the service "
        f"answered {told['requests_per_s'] or 0:,.0f} requests a second, and while told, took "
        f"{told['events_per_s'] or 0:,.0f} events a second",
    ]
    if told["degraded"]:
        lines.append(f"{told['degraded']:,} answers left something out")
    variants = {name: of for name, of in told["variants"].items() if name != "all" or len(told["variants"]) == 1}
    control = next(iter(variants))
    base = variants[control]["true"]
    rows = []
    for name, of in variants.items():
        values = [
            f"{value:.4g}" + (f" ({value / base[metric] - 1:+.2%})" if name != control and base[metric] else "")
            for metric, value in of["true"].items()
        ]
        latency = "" if of["p50_ms"] is None else f"{of['p50_ms']:.1f} / {of['p99_ms']:.1f}"
        rows.append([name, f"{of['users']:,}", *values, latency])
    titles = ("variant", "users", *next(iter(variants.values()))["true"], "p50/p99 ms")
    lines += ["", "True expectations of what was shown:", *text_table(titles, rows, left=1)]
    return "\n".join(lines)


def _latencies(found: Sequence[float]) -> dict[str, float | None]:
    if not found:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(found, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99}
