"""benchmark: train every model on one dataset with several seeds, and see which differences are real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet.data.dataset import Dataset
from infnet.errors import ArtifactError, SpecError, TrainingError, did_you_mean
from infnet.evaluation.evaluate import split_metrics
from infnet.evaluation.figures import check_figures, save_figure
from infnet.evaluation.leaderboard import Leaderboard, Origin, is_baseline
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.profile import profile_models
from infnet.evaluation.provenance import Provenance
from infnet.evaluation.run_figures import calibration_figure, training_figure
from infnet.evaluation.series import (
    Entry,
    FailedRun,
    RunResult,
    Series,
    SeriesCallback,
    SeriesProgress,
    check_out,
    check_split,
    predictions_path,
)
from infnet.evaluation.significance import MEAN
from infnet.evaluation.standings import Standings
from infnet.evaluation.standings_figures import cost_accuracy_figure, leaderboard_figure
from infnet.models.base import model_names
from infnet.training.checkpoint import write_atomically
from infnet.training.config import load_config
from infnet.training.search import TuneProgress, tune
from infnet.training.space import SearchSpace

__all__ = ["benchmark", "chosen_models"]


def benchmark(
    dataset: Dataset | Path | str,
    models: str | Sequence[str],
    out: Path | str,
    *,
    seeds: int = 3,
    trials: int = 0,
    space: str = "small",
    tuned: Path | str | None = None,
    split: str = "test",
    settings: Sequence[str] = (),
    progress: SeriesCallback | None = None,
) -> Leaderboard:
    """Train, judge and compare models; called again after an interruption, it does nothing twice.

    After every run ``out`` holds ``leaderboard.json``, ``leaderboard.md`` and ``significance.json``, at the end
    ``figures/`` too; ``runs/MODEL-seedN`` are the runs with their predictions, ``costs/MODEL.json`` what a model costs.
    A model that fails is listed with its reason and does not stop the others.

    Args:
        dataset: To train on, and to judge on.
        models: Names in the registry, also as one text with commas; ``all`` for every one.
        out: The directory.
        seeds: How many, from 0.
        trials: Tune every model first, with so many trials, into ``out/tuned/MODEL``; 0 for none.
        space: To search if there are trials.
        tuned: Directory with ``MODEL/best.yaml``, used for the models that have one.
        split: To judge on.
        settings: Overrides for every model, ``model.SETTING=VALUE`` or ``train.SETTING=VALUE``.
        progress: Told where it stands.

    Raises:
        SpecError: A model, setting or directory cannot be used, or a run there has other settings.
        DataError: There is nothing to train, validate or judge on.
        ArtifactError: Dataset, run or study is damaged, or they do not belong together.
    """
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    names, out = chosen_models(models), Path(out)
    if trials < 0 or (trials and tuned is not None):
        raise SpecError(f"--trials {trials}: wanted 0 or more, and none beside --tuned; give one of the two")
    check_figures()
    check_out(out)
    studies = None if tuned is None else Path(tuned)
    if studies is not None and not any((studies / name / "best.yaml").is_file() for name in names):
        raise SpecError(
            f"--tuned {studies}: has no MODEL/best.yaml for {', '.join(names)}; tune with --out {studies}/MODEL"
        )
    entries = {name: _entry(name, opened, studies, settings) for name in names}
    check_split(opened, split, seeds)
    notify = progress or (lambda _: None)
    failures: list[FailedRun] = []
    if trials:
        SearchSpace.load(space)
        studies = out / "tuned"
        for number, name in enumerate(names, start=1):
            at = SeriesProgress(number, len(names), name, "tune")
            try:
                _tune(opened, name, studies / name, trials, space, at, notify)
            except TrainingError as error:
                failures.append(FailedRun(name, None, str(error)))
                del entries[name]
            else:
                entries[name] = _entry(name, opened, studies, settings)
    command = _command(opened, models, out, seeds, trials, space, tuned, split, settings)
    board = Leaderboard(
        provenance=Provenance(opened, split, seeds, command),
        standings=Standings([], {}),
        origins={name: _origin(name, studies) for name in entries},
        costs={},
        failures=tuple(failures),
    )
    if entries:
        board = _run(board, list(entries.values()), out, notify)
    board.write(out, _draw(board, out / "figures"))
    return board


def chosen_models(models: str | Sequence[str]) -> tuple[str, ...]:
    """Names in the registry, in the order asked for; ``all`` for every one.

    Raises:
        SpecError: One is unknown, or asked for twice.
    """
    if models == "all":
        return tuple(model_names())
    names = tuple(name.strip() for name in models.split(",")) if isinstance(models, str) else tuple(models)
    for name in names:
        if name not in model_names():
            raise SpecError(f"--models: unknown model '{name}'{did_you_mean(name, ['all', *model_names()])}")
        if names.count(name) > 1:
            raise SpecError(f"--models: '{name}' is named twice; name each model once")
    return names


def _run(board: Leaderboard, entries: Sequence[Entry], out: Path, notify: SeriesCallback) -> Leaderboard:
    """Run the series, writing the board after every outcome."""
    provenance, by_name = board.provenance, {entry.name: entry for entry in entries}
    series = Series(entries, provenance.seeds, out / "runs", provenance.split, progress=notify)
    results: list[RunResult] = []
    costs: dict[str, dict[str, Any]] = {}
    failures = list(board.failures)
    for outcome in series:
        if isinstance(outcome, FailedRun):
            failures.append(outcome)
        else:
            results.append(outcome)
            if sum(result.name == outcome.name for result in results) == 1:
                notify(SeriesProgress(len(results), len(entries) * len(series.seeds), outcome.name, "measure"))
                try:
                    costs[outcome.name] = _cost(by_name[outcome.name], out / "costs" / f"{outcome.name}.json")
                except TrainingError as error:
                    failures.append(FailedRun(outcome.name, None, str(error)))
        baselines = {name for name in by_name if is_baseline(name)}
        board = Leaderboard(
            provenance, Standings.beside_best(results, baselines), board.origins, costs, tuple(failures)
        )
        board.write(out)
    return board


def _entry(name: str, dataset: Dataset, studies: Path | None, settings: Sequence[str]) -> Entry:
    best = None if studies is None else studies / name / "best.yaml"
    if best is None or not best.is_file():
        return Entry.of(name, load_config(None, settings, model=name), dataset)
    _origin(name, studies)  # refuses another model's
    return Entry.of(name, load_config(best, settings), dataset)


def _origin(name: str, studies: Path | None) -> Origin:
    study = None if studies is None else studies / name
    return Origin() if study is None or not (study / "best.yaml").is_file() else Origin.of_study(study, name)


def _tune(
    dataset: Dataset, name: str, study: Path, trials: int, space: str, at: SeriesProgress, notify: SeriesCallback
) -> None:
    def show(tuning: TuneProgress) -> None:
        trial = f"trial {tuning.number + 1} of {tuning.trials}"
        notify(SeriesProgress(at.number, at.total, name, "tune", training=tuning.training, note=trial))

    tune(dataset, name, study, trials=trials, space=space, evaluate=split_metrics(dataset), progress=show)


def _cost(entry: Entry, file: Path) -> dict[str, Any]:
    """What a model costs under its settings, measured unless ``file`` holds it."""
    asked = {"config": entry.config.document(), "fingerprint": entry.dataset.manifest.fingerprint}
    if file.is_file():
        try:
            known = json.loads(file.read_bytes())
            if known["of"] == asked:
                return dict(known["cost"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{file}: is damaged ({error!r}); remove it to measure again") from error
    cost = profile_models(entry.dataset, {entry.name: entry.config}).models[entry.name].as_json()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"of": asked, "cost": cost}, indent=1) + "\n")
    return cost


def _draw(board: Leaderboard, folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to see; title and path beside the page of each figure."""
    standings, title = board.standings, board.provenance.title
    if not standings.results:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    ranked = standings.ranked("auc")
    journals = {name: [run.path / "metrics.jsonl" for run in runs] for name, runs in standings.runs.items()}
    monitor = standings.results[0].training["monitor"]
    log = board.provenance.dataset.manifest.name
    drawn = {"training": ("Training", training_figure(journals, ranked, monitor, f"{log}: training"))}
    if standings.compared_parts != (MEAN,):
        ours = [name for name in ranked if not is_baseline(name)]
        others = [name for name in ranked if is_baseline(name)]
        predictions = {
            name: [Predictions.load(predictions_path(run.path, board.provenance.split)) for run in standings.runs[name]]
            for name in sorted([*ours[:1], *others[:3]], key=ranked.index)
        }
        drawn = {
            "leaderboard": ("AUC and gAUC", leaderboard_figure(standings, title)),
            "cost": ("Accuracy and cost", cost_accuracy_figure(standings, board.costs, f"{title}: accuracy and cost")),
            **drawn,
            "calibration": ("Calibration", calibration_figure(predictions, f"{title}: calibration")),
        }
    for name, (_, figure) in drawn.items():
        save_figure(figure, folder / f"{name}.png")
    return [(text, f"{folder.name}/{name}.png") for name, (text, _) in drawn.items()]


def _command(
    dataset: Dataset,
    models: str | Sequence[str],
    out: Path,
    seeds: int,
    trials: int,
    space: str,
    tuned: Path | str | None,
    split: str,
    settings: Sequence[str],
) -> tuple[str, ...]:
    words = ["infnet", "benchmark", str(dataset.path), "--models"]
    words += [models if isinstance(models, str) else ",".join(models), "--seeds", str(seeds)]
    words += ["--trials", str(trials), "--space", space] if trials else []
    words += ["--tuned", str(tuned)] if tuned is not None else []
    words += ["--split", split, *(word for setting in settings for word in ("--set", setting)), "--out", str(out)]
    return tuple(words)
