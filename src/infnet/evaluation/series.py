"""A series of runs: every entry trained with every seed and judged on one split, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infnet.data.dataset import Dataset
from infnet.errors import DataError, SpecError, TrainingError
from infnet.evaluation.evaluate import split_metrics
from infnet.evaluation.predict import predict
from infnet.evaluation.predictions import Predictions
from infnet.evaluation.report import EvaluationReport, evaluate_predictions
from infnet.evaluation.significance import Resampled, UserBootstrap
from infnet.training.config import TrainConfig
from infnet.training.progress import Progress
from infnet.training.run import Run
from infnet.training.space import complete_settings
from infnet.training.trainer import train

__all__ = [
    "Entry",
    "FailedRun",
    "RunResult",
    "Series",
    "SeriesCallback",
    "SeriesProgress",
    "check_out",
    "check_split",
    "predictions_path",
]


@dataclass(frozen=True)
class Entry:
    """One model under one configuration."""

    name: str
    config: TrainConfig
    """Of every seed."""
    dataset: Dataset
    """All entries of a series see the same rows, perhaps with other history lengths."""

    @classmethod
    def of(cls, name: str, config: TrainConfig, dataset: Dataset) -> Entry:
        """An entry whose settings are complete, checked before anything is trained.

        Raises:
            SpecError: The model, a setting or the monitored metric is unknown, or a value is out of range.
        """
        config.check_monitor(dataset.layout)
        settings = complete_settings(config.model, dataset.layout, config.settings)
        return cls(name, config.model_copy(update={"settings": settings}), dataset)

    def is_same_as(self, other: Entry) -> bool:
        """Whether both lead to the same run."""
        return self.config == other.config and self.dataset.manifest == other.dataset.manifest


@dataclass(frozen=True)
class RunResult:
    """One finished run, judged."""

    name: str
    """Of its entry."""
    seed: int
    path: Path
    training: dict[str, Any]
    """``report.json`` of the run."""
    versions: dict[str, Any]
    """Of the packages and the machine it was trained with."""
    report: EvaluationReport
    resampled: Resampled

    @property
    def cost(self) -> dict[str, Any]:
        """What training took."""
        return {name: self.training[name] for name in ("epochs", "steps", "train_s", "rows_per_s")}


@dataclass(frozen=True)
class FailedRun:
    """One run that could not go on."""

    name: str
    seed: int | None
    """None if tuning failed."""
    reason: str
    """One line."""


@dataclass(frozen=True)
class SeriesProgress:
    """Where a series stands."""

    number: int
    """Of the run, from 1; of the model while it is tuned."""
    total: int
    name: str
    stage: Literal["tune", "train", "score", "measure"]
    seed: int | None = None
    training: Progress | None = None
    """Of the run under way."""
    note: str = ""
    """Such as the trial under way."""


SeriesCallback = Callable[[SeriesProgress], None]


class Series:
    """Entries times seeds, with a directory for the runs.

    Each run lies in ``NAME-seedN``; once it is judged, ``predictions-SPLIT.npz`` lies there too. Seed by seed, so that
    entries can be compared at any time.

    Args:
        entries: Of different names.
        seeds: How many, from 0.
        runs: The directory.
        split: Of the dataset, to judge on.
        replicates: Resamples of the split's users.
        progress: Called after every training step.

    Raises:
        SpecError: As for :func:`check_split`, or a run that is there has other settings.
        ArtifactError: Likewise, or a run that is there is damaged or of another dataset.
        DataError: As for :func:`check_split`.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        seeds: int,
        runs: Path,
        split: str,
        *,
        replicates: int = 2000,
        progress: SeriesCallback | None = None,
    ) -> None:
        check_split(entries[0].dataset, split, seeds)
        self.entries, self.seeds, self.runs, self.split = tuple(entries), range(seeds), runs, split
        self.replicates, self.progress = replicates, progress or (lambda _: None)
        self._bootstrap: UserBootstrap | None = None
        for entry in self.entries:
            for seed in self.seeds:
                self._check_begun(entry, seed)

    def __iter__(self) -> Iterator[RunResult | FailedRun]:
        """Train and judge what is not there yet, and tell each outcome."""
        total = len(self.entries) * len(self.seeds)
        for number, (seed, entry) in enumerate(((s, e) for s in self.seeds for e in self.entries), start=1):
            at = SeriesProgress(number, total, entry.name, "train", seed)
            try:
                run = self._trained(entry, seed, at)
            except TrainingError as error:
                yield FailedRun(entry.name, seed, str(error))
            else:
                yield self._judged(entry, seed, run, at)

    def path(self, entry: Entry, seed: int) -> Path:
        """Where a run lies."""
        return self.runs / f"{entry.name}-seed{seed}"

    def _trained(self, entry: Entry, seed: int, at: SeriesProgress) -> Run:
        path, config = self.path(entry, seed), _with_seed(entry.config, seed)
        if Run.exists(path) and (run := Run.load(path)).is_finished:
            return run

        def show(training: Progress) -> None:
            self.progress(SeriesProgress(at.number, at.total, at.name, "train", seed, training))

        metrics = split_metrics(entry.dataset, config.batch_size)
        return train(entry.dataset, config, path, evaluate=metrics, resume=True, progress=show)

    def _judged(self, entry: Entry, seed: int, run: Run, at: SeriesProgress) -> RunResult:
        file = predictions_path(run.path, self.split)
        self.progress(SeriesProgress(at.number, at.total, at.name, "score", seed))
        if file.is_file():
            predictions = Predictions.load(file)
        else:
            predictions = predict(run.load_model(), entry.dataset, self.split)
            predictions.save(file)
        if self._bootstrap is None:
            self._bootstrap = UserBootstrap(predictions, self.replicates)
        return RunResult(
            name=entry.name,
            seed=seed,
            path=run.path,
            training=run.report,
            versions=run.about["versions"],
            report=evaluate_predictions(predictions),
            resampled=self._bootstrap.resample(predictions),
        )

    def _check_begun(self, entry: Entry, seed: int) -> None:
        path = self.path(entry, seed)
        if not Run.exists(path):
            return
        run = Run.load(path)
        run.check_dataset(entry.dataset)
        found, wanted = run.config.document(), _with_seed(entry.config, seed).document()
        found["history"], wanted["history"] = ({"lengths": _lengths(d)} for d in (run, entry.dataset))
        for section, settings in wanted.items():
            for name in [*settings, *(found[section].keys() - settings.keys())]:
                old, new = found[section].get(name), settings.get(name)
                if old != new:
                    raise SpecError(
                        f"{path}: was trained with {section}.{name} {old!r}, now {new!r} is asked for; "
                        "give the settings it has, or name another --out"
                    )


def predictions_path(run: Path, split: str) -> Path:
    """Where a run's predictions for a split lie."""
    return run / f"predictions-{split}.npz"


def check_split(dataset: Dataset, split: str, seeds: int) -> None:
    """See that models can be judged on a split, with so many seeds.

    Raises:
        SpecError: There are no seeds, or it is the split that models learn from.
        ArtifactError: There is no such split.
        DataError: It has no rows.
    """
    if seeds < 1:
        raise SpecError(f"--seeds: wanted at least 1, found {seeds}")
    if split == "train":
        raise SpecError("--split train: models are compared on rows they have not learned from; choose valid or test")
    if dataset.num_rows(split) == 0:
        raise DataError(f"{dataset.path}: split '{split}' has no rows; choose another --split")


def check_out(out: Path) -> None:
    """See that a directory is empty, not there, or the place of an earlier series.

    Raises:
        SpecError: It holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_series(out))):
        raise SpecError(f"--out {out}: is not empty and holds no earlier results of this command; choose another --out")


def _is_series(out: Path) -> bool:
    return (out / "runs").is_dir() or (out / "tuned").is_dir()


def _with_seed(config: TrainConfig, seed: int) -> TrainConfig:
    return config.model_copy(update={"seed": seed})


def _lengths(viewed: Run | Dataset) -> list[int]:
    return [behaviour.length for behaviour in viewed.layout.behaviours]
