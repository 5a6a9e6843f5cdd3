"""ablate: what each part of INFNet is worth, by leaving it out or changing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from infnet.data.dataset import Dataset
from infnet.errors import SpecError
from infnet.evaluation.figures import check_figures, save_figure
from infnet.evaluation.leaderboard import failures_section, method_remark, standings_table
from infnet.evaluation.markdown import metric_tables, number_cell, plain_tables, table
from infnet.evaluation.provenance import Provenance
from infnet.evaluation.published import REMARK, is_kuairand_pure
from infnet.evaluation.series import Entry, FailedRun, RunResult, Series, SeriesCallback, check_out
from infnet.evaluation.significance import METRICS
from infnet.evaluation.standings import Standings
from infnet.evaluation.standings_figures import difference_figure
from infnet.evaluation.variants import FULL, Variant, chosen_variants
from infnet.training.checkpoint import write_atomically
from infnet.training.config import load_config
from infnet.training.journal import without_nan

__all__ = ["Ablation", "ablate"]


@dataclass(frozen=True)
class Ablation:
    """What ``ablate`` found."""

    provenance: Provenance
    variants: tuple[Variant, ...]
    entries: Mapping[str, Entry]
    """Of every variant, by its name; those with equal settings share one."""
    standings: Standings
    """Compared with the full model."""
    failures: tuple[FailedRun, ...] = ()

    @property
    def judged(self) -> list[str]:
        """Entries with results, in the order of the variants."""
        names = dict.fromkeys(entry.name for entry in self.entries.values())
        return [name for name in names if name in self.standings.names]

    def as_json(self) -> dict[str, Any]:
        """``variants`` with their runs, and ``significance``; None where undefined."""
        return {
            "variants": [
                {
                    "name": variant.name,
                    "group": variant.group,
                    "settings": dict(variant.settings),
                    "history": variant.history,
                    "entry": self.entries[variant.name].name,
                    "runs": [_run_json(run) for run in self.standings.runs.get(self.entries[variant.name].name, [])],
                }
                for variant in self.variants
            ],
            "significance": self.standings.as_json(),
        }

    def as_markdown(self, figure: str | None = None) -> str:
        """The whole page, with the figure at that path."""
        standings = self.standings
        sections = [f"# Ablation: {self.provenance.title}\n"]
        if standings.results:
            sections.append(method_remark(standings))
            sections += [] if figure is None else [f"![Differences to the full model]({figure})\n"]
            for metric in METRICS:
                sections.append(metric_tables(standings, metric, self.judged, self._label, reference="the full model"))
            sections.append(plain_tables(standings, self.judged, self._label))
            sections.append(self._variants_table())
        sections.append(failures_section(self.failures))
        sections.append(f"## How this was made\n\n{self.provenance.as_markdown(standings.results)}")
        return "\n".join(section for section in sections if section)

    def as_table(self) -> Table:
        """The task means, variant by variant."""
        return standings_table(self.standings, self.judged, f"{self.provenance.title}: mean over tasks", self._label)

    def write(self, out: Path, figure: str | None = None) -> None:
        """``ablation.json`` and ``ablation.md``."""
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "ablation.json", json.dumps(self.as_json(), indent=1) + "\n")
        write_atomically(out / "ablation.md", self.as_markdown(figure))

    def groups(self) -> dict[str, list[tuple[str, str]]]:
        """By group, its variants with results, and the entry that shows each."""
        found: dict[str, list[tuple[str, str]]] = {}
        for variant in self.variants:
            entry = self.entries[variant.name].name
            if variant.name != FULL and entry in self.standings.names:
                same = f" (= {entry})" if entry != variant.name else ""
                found.setdefault(variant.group, []).append((variant.name + same, entry))
        return found

    def _label(self, name: str) -> str:
        runs = len(self.standings.runs[name])
        return name if runs == self.provenance.seeds else f"{name} ({runs} of {self.provenance.seeds} seeds)"

    def _variants_table(self) -> str:
        has_paper = is_kuairand_pure(self.provenance.dataset.manifest.name)
        header = ["variant", "settings", "group", "s of training", *(["click AUC, published"] if has_paper else [])]
        rows = []
        for variant in self.variants:
            entry = self.entries[variant.name].name
            settings = ", ".join(f"{name}={value}" for name, value in variant.settings.items())
            changed = settings if variant.history == 1 else f"the latest {variant.history:g} of each history"
            seconds = number_cell(self.standings.average(entry, "train_s")) if entry in self.standings.names else ""
            same = f" (= {entry})" if entry != variant.name else ""
            row = [variant.name + same, changed, variant.group, seconds]
            rows.append([*row, variant.paper] if has_paper else row)
        remark = f"\n\n{REMARK}" if has_paper else ""
        return f"## Variants\n\n{table(header, rows, left=3)}{remark}\n"


def ablate(
    dataset: Dataset | Path | str,
    out: Path | str,
    *,
    seeds: int = 3,
    only: str | Sequence[str] | None = None,
    config: Path | None = None,
    split: str = "test",
    settings: Sequence[str] = (),
    progress: SeriesCallback | None = None,
) -> Ablation:
    """Train INFNet and its variants, and compare each with the full model; called again, it does nothing twice.

    After every run ``out`` holds ``ablation.json`` and ``ablation.md``, at the end ``ablation.png`` too. Variants whose
    settings are the same share their runs.

    Args:
        dataset: To train on, and to judge on.
        out: The directory; ``runs/VARIANT-seedN`` are the runs.
        seeds: How many, from 0.
        only: Names of :data:`infnet.evaluation.variants.VARIANTS`, also as one text with commas; all by default.
            The full model is always there.
        config: YAML file with the full model's settings; the defaults if None.
        split: To judge on.
        settings: Overrides for the full model, and so for all.
        progress: Told where it stands.

    Raises:
        SpecError: A variant, setting or directory cannot be used, or a run there has other settings.
        DataError: There is nothing to train, validate or judge on.
        ArtifactError: Dataset or run is damaged, or they do not belong together.
    """
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    out, variants = Path(out), chosen_variants(only)
    check_figures()
    check_out(out)
    entries = _entries(variants, opened, config, settings)
    words = ["infnet", "ablate", str(opened.path), "--seeds", str(seeds)]
    words += [] if only is None else ["--only", only if isinstance(only, str) else ",".join(only)]
    words += [] if config is None else ["--config", str(config)]
    words += ["--split", split, *(word for setting in settings for word in ("--set", setting)), "--out", str(out)]
    provenance = Provenance(opened, split, seeds, tuple(words))
    results: list[RunResult] = []
    failures: list[FailedRun] = []
    distinct = {entry.name: entry for entry in entries.values()}
    found = Ablation(provenance, variants, entries, Standings([], {}))
    for outcome in Series(list(distinct.values()), seeds, out / "runs", split, progress=progress):
        if isinstance(outcome, FailedRun):
            failures.append(outcome)
        else:
            results.append(outcome)
        full = {metric: FULL for metric in METRICS if any(result.name == FULL for result in results)}
        found = Ablation(provenance, variants, entries, Standings(results, full), tuple(failures))
        found.write(out)
    if found.groups():
        title = f"{provenance.title}: INFNet with parts left out or changed"
        save_figure(difference_figure(found.standings, found.groups(), FULL, title), out / "ablation.png")
        found.write(out, "ablation.png")
    return found


def _entries(
    variants: Sequence[Variant], dataset: Dataset, config: Path | None, settings: Sequence[str]
) -> dict[str, Entry]:
    base = load_config(config, settings)
    if base.model != "infnet":
        raise SpecError(
            f"ablate: the settings are of model '{base.model}'; variants are of 'infnet', give a config of it"
        )
    entries: dict[str, Entry] = {}
    for variant in variants:
        chosen = base.model_copy(update={"settings": {**base.settings, **variant.settings}})
        entry = Entry.of(variant.name, chosen, _with_share(dataset, variant.history))
        entries[variant.name] = next((known for known in entries.values() if known.is_same_as(entry)), entry)
    return entries


def _with_share(dataset: Dataset, share: float) -> Dataset:
    """The dataset with the latest share of each history, one event at least."""
    lengths = [behaviour.length for behaviour in dataset.layout.behaviours]
    return dataset if share == 1 else dataset.with_history_lengths([max(1, round(share * n)) for n in lengths])


def _run_json(run: RunResult) -> dict[str, Any]:
    judged = run.report.as_json()
    return {"seed": run.seed, "tasks": judged["tasks"], "mean": judged["mean"], "cost": without_nan(run.cost)}
