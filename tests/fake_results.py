"""Results of a series that was never run: twenty models with plausible metrics, intervals and costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infnet.evaluation.report import EvaluationReport, TaskReport
from infnet.evaluation.series import RunResult
from infnet.evaluation.significance import Resampled

TASKS = {"click": 0.02, "like": 0.08, "long_view": 0.02}
"""How far a resample strays from the truth."""

MODELS = (
    *(
        "infnet",
        "infnet_paper",
        "shared_bottom",
        "mmoe",
        "omoe",
        "ple",
        "stem",
        "aitm",
        "esmm",
        "fm",
        "deepfm",
        "dcnv2",
    ),
    *("gdcn", "xdeepfm", "autoint", "din", "dien", "wukong", "hstu", "wide_deep"),
)


def fake_results(models=MODELS, seeds=3, replicates=400, spread=0.02, noise=0.002) -> list[RunResult]:
    """Runs whose true quality falls from the first model to the last."""
    rng = np.random.default_rng(0)
    by_users = {task: rng.normal(0, width, (2, replicates)) for task, width in TASKS.items()}
    results = []
    for seed in range(seeds):
        for place, name in enumerate(models):
            tasks, values, draws = {}, [], []
            for level, task in enumerate(TASKS):
                quality = 0.75 + 0.05 * level - spread * place / len(models) + rng.normal(0, noise)
                values.append((quality, quality - 0.12))
                own = rng.normal(0, 0.1 * TASKS[task], (2, replicates))
                draws.append(np.array(values[-1])[:, None] + by_users[task] + own)
                metrics = {"auc": quality, "gauc": quality - 0.12, "logloss": 1.3 - quality, "pcoc": 1.02, "ece": 0.01}
                metrics |= {"ndcg@10": quality - 0.2, "recall@10": quality - 0.1}
                tasks[task] = TaskReport(kind="binary", metrics=metrics, counts={"rows": 100})
            amounts = {"r2": 0.1 + rng.normal(0, 0.01), "mae": 12.0, "rmse": 30.0}
            tasks["watch_time"] = TaskReport(kind="regression", metrics=amounts, counts={"rows": 100})
            table, samples = np.array(values).T, np.stack(draws, axis=1)
            results.append(
                RunResult(
                    name=name,
                    seed=seed,
                    path=Path(f"runs/{name}-seed{seed}"),
                    training={"epochs": 1.0, "steps": 168, "train_s": 20.0 + place, "rows_per_s": 9000.0 - 100 * place},
                    versions={"infnet": "1", "torch": "2"},
                    report=EvaluationReport(num_rows=100, num_users=10, tasks=tasks),
                    resampled=Resampled(
                        parts=(*TASKS, "mean"),
                        values=np.concatenate([table, table.mean(axis=1, keepdims=True)], axis=1),
                        draws=np.concatenate([samples, samples.mean(axis=1, keepdims=True)], axis=1),
                    ),
                )
            )
    return results


def fake_costs(models=MODELS) -> dict[str, dict[str, float]]:
    """What each model costs, some of them nearly alike."""
    rng = np.random.default_rng(1)
    return {
        name: {
            "dense_parameters": int(10 ** rng.uniform(4.5, 6.5)),
            "embedding_parameters": 12_345_678,
            "flops_per_row": int(10 ** rng.uniform(5, 7)),
            "train_rows_per_s": float(10 ** rng.uniform(3.5, 4.3)),
            "score_rows_per_s": float(10 ** rng.uniform(4, 5)),
            "batch_ms": float(10 ** rng.uniform(1.5, 2.5)),
            "request_ms": float(10 ** rng.uniform(0.5, 1.7)),
            "peak_mb": float(10 ** rng.uniform(2, 3)),
        }
        for name in models
    }
