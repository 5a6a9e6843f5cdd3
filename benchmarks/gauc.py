"""How long gAUC takes beside one sort of the same rows; prints a Markdown table. One core, one process.

    OMP_NUM_THREADS=1 python benchmarks/gauc.py --rows 10000000 --users 100000

Every line is measured in every round, one after another, so that a slow moment of the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from infnet.evaluation.auc import auc, gauc, user_aucs
from infnet.evaluation.ordered import order_rows


def naive_user_loop(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """gAUC user by user with scikit-learn, as it is often written."""
    aucs, weights = [], []
    for user in np.unique(users):
        own = users == user
        if 0 < labels[own].sum() < own.sum():
            aucs.append(roc_auc_score(labels[own], scores[own]))
            weights.append(own.sum())
    return float(np.average(aucs, weights=weights))


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Draw the rows, check that all ways agree, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--loop-users", type=int, default=200, help="users in the subset that the naive loop gets")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    rng = np.random.default_rng(0)
    users = rng.integers(0, options.users, options.rows)
    scores = rng.standard_normal(options.rows, dtype=np.float32)
    probs = 1 / (1 + np.exp(-scores.astype(np.float64)))
    coarse = np.round(scores * 10).astype(np.float32)
    labels = rng.random(options.rows) < probs * 0.4
    keys = order_rows(labels, scores, users).keys
    unsorted_keys = rng.permutation(keys)

    subset = users < options.loop_users
    few = labels[subset], scores[subset], users[subset]
    np.testing.assert_allclose(gauc(*few), naive_user_loop(*few), rtol=1e-12)
    np.testing.assert_allclose(auc(labels, scores), roc_auc_score(labels, scores), rtol=1e-12)
    assert gauc(labels, probs, users) == gauc(labels, scores, users), "the sigmoid keeps the order"

    lexsort, plain = "`np.lexsort((scores, users))`, the baseline", "`np.sort` of ready packed keys"
    loop = f"scikit-learn per user, first {options.loop_users} users only"
    seconds = measure(
        {
            lexsort: lambda: np.lexsort((scores, users)),
            plain: lambda: np.sort(unsorted_keys),
            "`gauc`, float32 scores": lambda: gauc(labels, scores, users),
            "`gauc`, float64 probs": lambda: gauc(labels, probs, users),
            "`gauc`, float32, many ties": lambda: gauc(labels, coarse, users),
            "`user_aucs`, float32 scores": lambda: user_aucs(labels, scores, users),
            "`auc`, float32 scores": lambda: auc(labels, scores),
            "`roc_auc_score`, float32 scores": lambda: roc_auc_score(labels, scores),
            f"`gauc`, first {options.loop_users} users only": lambda: gauc(*few),
            loop: lambda: naive_user_loop(*few),
        },
        options.rounds,
    )
    print(
        f"{options.rows:,} rows, {options.users:,} users, NumPy {np.__version__}, median of {options.rounds} rounds\n"
    )
    print("| what | seconds | of the lexsort | of the plain sort |")
    print("|---|---:|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds[lexsort]:.2f} | {value / seconds[plain]:.2f} |")


if __name__ == "__main__":
    main()
