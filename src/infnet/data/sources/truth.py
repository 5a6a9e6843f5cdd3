"""The truth beside a synthetic log, and how well the best of models could do on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["LABELS", "Ceiling", "best_auc"]

LABELS = {"click": "is_click", "like": "is_like", "long_view": "long_view", "return": "return_next_day"}
"""Log column of each task whose true probability is in the column ``p_TASK`` of the truth."""
_BINS = 65_536


def best_auc(directory: Path, where: pl.Expr | None = None) -> dict[str, float]:
    """AUC of the true probabilities by task: click, like, long_view, return. What no model beats but by luck.

    Probabilities count as tied within 1/65536. A task whose label never varies is left out. The truth knows the
    position and the rest of the day, which a ranker does not: it can come near, not up to it.

    Args:
        directory: What :func:`infnet.data.sources.synthetic.write_world` wrote.
        where: Condition on the log's columns, such as ``pl.col("date") >= 20240113``.
    """
    ceiling = Ceiling()
    for path in sorted((directory / "data").glob("log_*.parquet")):
        truth = pl.read_parquet(directory / "truth" / path.name.replace("log_", "truth_"))
        both = pl.concat([pl.read_parquet(path), truth.select("^p_.*$")], how="horizontal")
        both = both.filter(True if where is None else where)
        ceiling.add(both, both)
    return ceiling.aucs()


class Ceiling:
    """Counts of rows by task, label and true probability, taken batch by batch."""

    def __init__(self) -> None:
        self._counts = {task: np.zeros((2, _BINS), np.int64) for task in LABELS}

    def add(self, log: pl.DataFrame, truth: pl.DataFrame) -> None:
        """Take in rows of a log and of its truth."""
        for task, label in LABELS.items():
            index = (truth[f"p_{task}"].to_numpy() * (_BINS - 1)).astype(np.int64)
            index += np.where(log[label].to_numpy() == 1, _BINS, 0)
            self._counts[task] += np.bincount(index, minlength=2 * _BINS).reshape(2, _BINS)

    def aucs(self) -> dict[str, float]:
        """AUC by task, as :func:`best_auc` gives it."""
        aucs = {}
        for task, (negatives, positives) in self._counts.items():
            pairs = float(negatives.sum()) * float(positives.sum())
            if pairs:
                below = np.cumsum(negatives) - negatives / 2
                aucs[task] = float((positives * below).sum() / pairs)
        return aucs
