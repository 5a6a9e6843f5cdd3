"""The journey in Python: prepare, train, evaluate, tune. What the command line does, without printing."""

from __future__ import annotations

from pathlib import Path

from infnet.data.dataset import Dataset
from infnet.data.prepare import Progress as PrepareProgress
from infnet.data.prepare import prepare as _prepare
from infnet.data.report import PrepareReport
from infnet.evaluation.evaluate import evaluate_run, split_metrics
from infnet.evaluation.report import EvaluationReport
from infnet.schema import DatasetSpec, load_spec
from infnet.training.config import TrainConfig
from infnet.training.progress import ProgressCallback
from infnet.training.run import Run
from infnet.training.search import TuneResult
from infnet.training.search import tune as _tune
from infnet.training.trainer import train as _train

__all__ = ["evaluate", "prepare", "train", "tune"]


def prepare(
    spec: DatasetSpec | Path | str,
    raw: Path | str,
    out: Path | str,
    *,
    history: Path | str | None = None,
    progress: PrepareProgress | None = None,
) -> PrepareReport:
    """Turn raw logs into a prepared dataset; see :func:`infnet.data.prepare.prepare`.

    Args:
        spec: A declaration, or the path of its YAML file.
        raw: Directory with the raw files.
        out: Directory to make.
        history: Parquet or CSV with events from before the log begins.
        progress: Called with each stage and the share of it that is done.
    """
    declared = spec if isinstance(spec, DatasetSpec) else load_spec(Path(spec))
    seeds = None if history is None else Path(history)
    return _prepare(declared, Path(raw), Path(out), history=seeds, progress=progress)


def train(
    dataset: Dataset | Path | str,
    config: TrainConfig,
    out: Path | str,
    *,
    resume: bool = False,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> Run:
    """Train a model on a prepared dataset; see :func:`infnet.training.trainer.train`."""
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    metrics = split_metrics(opened, config.batch_size)
    return _train(opened, config, out, evaluate=metrics, resume=resume, force=force, progress=progress)


def evaluate(run: Run | Path | str, split: str = "test") -> EvaluationReport:
    """Metrics of a run's best checkpoint; see :func:`infnet.evaluation.evaluate.evaluate_run`."""
    return evaluate_run(run if isinstance(run, Run) else Run.load(run), split)


def tune(
    dataset: Dataset | Path | str, model: str, out: Path | str, *, trials: int, space: str = "small", seed: int = 0
) -> TuneResult:
    """Search a model's settings; see :func:`infnet.training.search.tune`."""
    opened = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    return _tune(opened, model, out, trials=trials, space=space, seed=seed, evaluate=split_metrics(opened))
