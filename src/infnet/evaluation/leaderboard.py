"""Leaderboard: models compared on one dataset, for people (Markdown), for scripts (JSON) and for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from infnet.errors import ArtifactError, SpecError
from infnet.evaluation.markdown import TITLES, metric_tables, number_cell, p_cell, plain_tables, table
from infnet.evaluation.provenance import Provenance
from infnet.evaluation.published import beside_published, is_kuairand_pure
from infnet.evaluation.series import FailedRun
from infnet.evaluation.significance import MEAN, METRICS
from infnet.evaluation.standings import LEVEL, Standings
from infnet.training.checkpoint import write_atomically
from infnet.training.config import load_config
from infnet.training.journal import without_nan

__all__ = ["Leaderboard", "Origin", "failures_section", "is_baseline", "method_remark", "standings_table"]

_COSTS = {
    "dense_parameters": "dense parameters",
    "embedding_parameters": "embedding parameters",
    "flops_per_row": "FLOPs per row",
    "train_rows_per_s": "rows/s, training",
    "score_rows_per_s": "rows/s, scoring",
    "batch_ms": "ms per step",
    "request_ms": "ms per request",
    "peak_mb": "peak MB",
}


@dataclass(frozen=True)
class Origin:
    """Where a model's settings come from."""

    searched: str = "nothing"
    """Space and number of trials."""
    won: str = "defaults"

    @classmethod
    def of_study(cls, study: Path, model: str) -> Origin:
        """Of a directory that ``infnet tune`` wrote, with ``best.yaml`` and, unless made by hand, ``report.json``.

        Raises:
            SpecError: ``best.yaml`` is of another model, or cannot be used.
            ArtifactError: ``report.json`` is damaged.
        """
        best, report = study / "best.yaml", study / "report.json"
        found = load_config(best).model
        if found != model:
            raise SpecError(
                f"{best}: is of model '{found}', wanted '{model}'; tune it with 'infnet tune --model {model}'"
            )
        if not report.is_file():
            return cls("not recorded", f"`{best}`")
        try:
            told = json.loads(report.read_bytes())
            settings = told["best"]["settings"]
            searched = f"space {told['space']}, {len(told['trials'])} trials"
            number = told["best"]["number"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{report}: is damaged ({error!r}); run the same 'infnet tune' again") from error
        chosen = ", ".join(f"{name} {_flow(value)}" for name, value in settings.items())
        return cls(searched, f"trial {number}{' (defaults)' if number == 0 else ''}: {chosen}")


@dataclass(frozen=True)
class Leaderboard:
    """What ``benchmark`` found."""

    provenance: Provenance
    standings: Standings
    origins: Mapping[str, Origin]
    """Of every model's settings."""
    costs: Mapping[str, Mapping[str, Any]]
    """Of every measured model, by the names of :class:`infnet.evaluation.efficiency.ModelCost`."""
    failures: tuple[FailedRun, ...] = ()

    def as_json(self) -> list[dict[str, Any]]:
        """One entry per finished run: ``model``, ``seed``, ``tasks``, ``mean`` and ``cost``; None where undefined."""
        entries = []
        for result in self.standings.results:
            judged = result.report.as_json()
            cost = result.cost | dict(self.costs.get(result.name, {}))
            entry = {"model": result.name, "seed": result.seed, "tasks": judged["tasks"], "mean": judged["mean"]}
            entries.append(entry | {"cost": without_nan(cost)})
        return entries

    def as_markdown(self, figures: Sequence[tuple[str, str]] = ()) -> str:
        """The whole page.

        Args:
            figures: Title and path of each, to show in it.
        """
        standings, label = self.standings, self._label
        sections = [f"# Leaderboard: {self.provenance.title}\n"]
        if standings.results:
            sections.append(method_remark(standings))
            sections += [f"![{title}]({path})\n" for title, path in figures]
            for metric in METRICS:
                names = standings.ranked(metric)
                sections.append(metric_tables(standings, metric, names, label, reference="the best baseline"))
            ranked = standings.ranked("auc")
            sections.append(plain_tables(standings, ranked, label))
            if is_kuairand_pure(self.provenance.dataset.manifest.name):
                sections.append(beside_published(standings))
            sections.append(self._cost_table(ranked))
        sections += [self._origins_table(), failures_section(self.failures)]
        sections.append(f"## How this was made\n\n{self.provenance.as_markdown(standings.results)}")
        return "\n".join(section for section in sections if section)

    def as_table(self) -> Table:
        """The task means, best AUC first."""
        return standings_table(
            self.standings, self.standings.ranked("auc"), f"{self.provenance.title}: mean over tasks", self._label
        )

    def write(self, out: Path, figures: Sequence[tuple[str, str]] = ()) -> None:
        """``leaderboard.json``, ``leaderboard.md`` and ``significance.json``."""
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "leaderboard.json", json.dumps(self.as_json(), indent=1) + "\n")
        write_atomically(out / "significance.json", json.dumps(self.standings.as_json(), indent=1) + "\n")
        write_atomically(out / "leaderboard.md", self.as_markdown(figures))

    def _label(self, name: str) -> str:
        runs = len(self.standings.runs[name])
        return name if runs == self.provenance.seeds else f"{name} ({runs} of {self.provenance.seeds} seeds)"

    def _cost_table(self, names: Sequence[str]) -> str:
        known = [key for key in _COSTS if any(key in self.costs.get(name, {}) for name in names)]
        header = ["model", *(_COSTS[key] for key in known), "epochs", "s of training", "rows/s of the runs"]
        rows = [
            [
                name,
                *(number_cell(self.costs.get(name, {}).get(key)) for key in known),
                *(number_cell(self.standings.average(name, key)) for key in ("epochs", "train_s", "rows_per_s")),
            ]
            for name in names
        ]
        return f"## Cost\n\n{table(header, rows)}\n"

    def _origins_table(self) -> str:
        rows = [[name, origin.searched, origin.won] for name, origin in self.origins.items()]
        return f"## Settings\n\n{table(['model', 'searched', 'won'], rows, left=3)}\n"


def is_baseline(model: str) -> bool:
    """Whether a model is one to be compared with, not INFNet or a variant of it."""
    return not model.startswith("infnet")


def method_remark(standings: Standings) -> str:
    """How the numbers are to be read."""
    resampled, seeds = standings.as_json(), max(len(runs) for runs in standings.runs.values())
    spread = "Means over seeds ± the standard deviation of one seed. " if seeds > 1 else ""
    seedless = "" if seeds > 1 else ", which say nothing about the luck of seeds: with one seed nothing is bold"
    return (
        f"{spread}Intervals hold 95% of {resampled['replicates']:,} resamples of {resampled['resampled']}{seedless}; "
        "p-values are corrected for the number of rows in their column (Holm). "
        f"Bold: the best of its column, and proven better than the reference (corrected p < {LEVEL}).\n"
    )


def failures_section(failures: Sequence[FailedRun]) -> str:
    """What could not be finished and why; empty if nothing failed."""
    if not failures:
        return ""
    lines = [f"- {f.name}{'' if f.seed is None else f', seed {f.seed}'}: {f.reason}" for f in failures]
    return "## Failed\n\n" + "\n".join(lines) + "\n"


def standings_table(standings: Standings, names: Sequence[str], title: str, label: Callable[[str], str]) -> Table:
    """The task means for a terminal, with the difference to the reference."""
    bases = dict.fromkeys(standings.references.values())
    if len(bases) > 1:
        bases = dict.fromkeys(f"{name} ({TITLES[metric]})" for metric, name in standings.references.items())
    caption = f"difference to {' and '.join(bases)}; p corrected by Holm" if bases else None
    shown = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    shown.add_column("model", no_wrap=True)
    for metric in METRICS:
        shown.add_column(TITLES[metric], justify="right", no_wrap=True)
        if metric in standings.references:
            shown.add_column("difference", justify="right", no_wrap=True)
            shown.add_column("p", justify="right", no_wrap=True)
    for name in names:
        row = [label(name)]
        for metric in METRICS:
            mean, compared = standings.mean(name, MEAN, metric), standings.comparison(name, MEAN, metric)
            row.append("undefined" if math.isnan(mean) else f"{mean:.4f}")
            if metric in standings.references:
                found = (
                    ("", "")
                    if compared is None
                    else (f"{compared.difference.value:+.4f}", p_cell(compared.corrected_p))
                )
                row += found
        shown.add_row(*row)
    return shown


def _flow(value: Any) -> str:
    """A value as it stands in a YAML file."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
