"""What a series of runs says so far: means over seeds, and which differences stand out from chance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from infnet.evaluation.auc import mean_defined
from infnet.evaluation.series import RunResult
from infnet.evaluation.significance import MEAN, METRICS, Difference, compare, holm

__all__ = ["LEVEL", "Comparison", "Standings"]

LEVEL = 0.05
"""Of corrected p-values that count as proof."""


@dataclass(frozen=True)
class Comparison:
    """An entry beside the reference, in one metric of one part."""

    difference: Difference
    corrected_p: float
    """By Holm over all entries compared in this metric and part."""

    @property
    def is_better(self) -> bool:
        """Whether the entry is proven better."""
        return self.difference.value > 0 and self.corrected_p < LEVEL


class Standings:
    """Results by entry, in the order given; a part is a task, or ``mean`` over the binary ones.

    Args:
        results: Of all finished runs.
        references: By metric (``auc``, ``gauc``) the entry that others are compared with; none for those left out.
    """

    def __init__(self, results: Sequence[RunResult], references: Mapping[str, str]) -> None:
        self.results = tuple(results)
        self.references = dict(references)
        self.runs: dict[str, list[RunResult]] = {}
        for result in results:
            self.runs.setdefault(result.name, []).append(result)

    @classmethod
    def beside_best(cls, results: Sequence[RunResult], candidates: Collection[str]) -> Standings:
        """Compared, in each metric, with the candidate that has the highest mean over tasks."""
        plain = cls(results, {})
        references = {}
        for metric in METRICS:
            known = [name for name in plain.names if name in candidates and plain.is_defined(name, MEAN, metric)]
            if known:
                references[metric] = max(known, key=lambda name: plain.mean(name, MEAN, metric))
        return cls(results, references)

    @property
    def names(self) -> tuple[str, ...]:
        """Entries with at least one finished run."""
        return tuple(self.runs)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the dataset's order."""
        return tuple(self.results[0].report.tasks) if self.results else ()

    @property
    def compared_parts(self) -> tuple[str, ...]:
        """Binary tasks, then ``mean``."""
        return self.results[0].resampled.parts if self.results else ()

    def metrics(self, part: str) -> tuple[str, ...]:
        """What was measured of a task, or of ``mean``."""
        report = self.results[0].report
        return tuple(report.mean) if part == MEAN else tuple(report.tasks[part].metrics)

    def values(self, name: str, part: str, metric: str) -> list[float]:
        """Of each seed; NaN where undefined."""
        reports = [run.report for run in self.runs[name]]
        return [report.mean[metric] if part == MEAN else report.tasks[part].metrics[metric] for report in reports]

    def mean(self, name: str, part: str, metric: str) -> float:
        """Over seeds; NaN if undefined for any of them."""
        return math.fsum(self.values(name, part, metric)) / len(self.runs[name])

    def is_defined(self, name: str, part: str, metric: str) -> bool:
        """Whether every seed has the metric."""
        return not math.isnan(self.mean(name, part, metric))

    def ranked(self, metric: str) -> list[str]:
        """Entries by their mean over tasks, best first, undefined ones last."""

        def goodness(name: str) -> float:
            value = self.mean(name, MEAN, metric)
            return -math.inf if math.isnan(value) else value

        return sorted(self.names, key=goodness, reverse=True)

    @cached_property
    def comparisons(self) -> dict[str, dict[str, dict[str, Comparison]]]:
        """By metric, entry and part; the reference itself is left out."""
        found: dict[str, dict[str, dict[str, Comparison]]] = {}
        for metric, reference in self.references.items():
            names = [name for name in self.names if name != reference]
            base = [run.resampled for run in self.runs[reference]]
            of_name = {name: compare([run.resampled for run in self.runs[name]], base)[metric] for name in names}
            found[metric] = {name: {} for name in names}
            for part in self.compared_parts:
                corrected = holm([of_name[name][part].p_value for name in names])
                for name, p_value in zip(names, corrected, strict=True):
                    found[metric][name][part] = Comparison(of_name[name][part], p_value)
        return found

    def comparison(self, name: str, part: str, metric: str) -> Comparison | None:
        """None for the reference, and where nothing is compared."""
        return self.comparisons.get(metric, {}).get(name, {}).get(part)

    def is_proven_best(self, name: str, part: str, metric: str) -> bool:
        """Whether an entry has the best mean of all and is proven better than the reference, both over seeds."""
        compared = self.comparison(name, part, metric)
        if compared is None or not compared.is_better:
            return False
        if len(self.runs[name]) == 1 or len(self.runs[self.references[metric]]) == 1:
            return False
        own = self.mean(name, part, metric)
        return all(not self.mean(other, part, metric) > own for other in self.names)

    def as_json(self) -> dict[str, Any]:
        """All comparisons, None where undefined."""
        resampled = self.results[0].resampled if self.results else None
        return {
            "replicates": resampled.draws.shape[-1] if resampled else 0,
            "resampled": "users and seeds" if any(len(runs) > 1 for runs in self.runs.values()) else "users",
            "references": self.references,
            "differences": [
                {
                    "model": name,
                    "metric": metric,
                    "part": part,
                    **found.difference.as_json(),
                    "corrected_p": None if math.isnan(found.corrected_p) else found.corrected_p,
                }
                for metric, of_name in self.comparisons.items()
                for name, of_part in of_name.items()
                for part, found in of_part.items()
            ],
        }

    def spread(self, name: str, part: str, metric: str) -> float | None:
        """Standard deviation of one seed (n - 1); None with one seed."""
        values = self.values(name, part, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def average(self, name: str, cost: str) -> float:
        """Mean over seeds of a number in :attr:`RunResult.cost`; NaN where a run has none."""
        return mean_defined(float("nan") if run.cost[cost] is None else run.cost[cost] for run in self.runs[name])
