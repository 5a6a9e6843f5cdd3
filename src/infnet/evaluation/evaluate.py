"""Judge a training run on a split of its dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infnet.data.dataset import Dataset
from infnet.errors import ArtifactError
from infnet.evaluation.predict import BatchSource, predict
from infnet.evaluation.report import EvaluationReport, evaluate_predictions
from infnet.models import RankingModel
from infnet.training.run import Run

__all__ = ["evaluate_run", "open_dataset_of", "split_metrics"]


def evaluate_run(
    run: Run,
    split: str = "test",
    *,
    data: Path | None = None,
    batch_size: int = 4096,
    k: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Metrics of a run's best checkpoint.

    Args:
        run: The run.
        split: Of the dataset; ``valid``, ``test`` or an extra one.
        data: Where the dataset is now; where it was when the run began by default.
        batch_size: Rows at a time; changes nothing but memory and speed.
        k: Ranks that NDCG and recall look at.
        on_progress: Called with the rows done and the rows in all.

    Raises:
        ArtifactError: Run or dataset is missing or damaged, they do not belong together, or there is no such split.
        DataError: The model's scores are no finite numbers.
    """
    dataset = open_dataset_of(run, data)
    total, done = dataset.num_rows(split), 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total)

    return evaluate_predictions(predict(run.load_model(), dataset, split, batch_size, count), k)


def open_dataset_of(run: Run, data: Path | None = None) -> Dataset:
    """The dataset a run was trained on, checked to be the same, with histories as long as the run saw them.

    Raises:
        ArtifactError: It is not there, or another one is.
    """
    if data is None and not run.dataset_path.is_dir():
        raise ArtifactError(f"{run.path}: its dataset is not at {run.dataset_path} any more; say where with --data DIR")
    dataset = Dataset.open(data or run.dataset_path)
    run.check_dataset(dataset)
    return dataset.with_history_lengths([behaviour.length for behaviour in run.layout.behaviours])


def split_metrics(dataset: BatchSource, batch_size: int = 4096) -> Callable[[RankingModel, str], dict[str, float]]:
    """How good a model is on a split of ``dataset``, by flat metric name: what the trainer asks for after an epoch."""

    def evaluate(model: RankingModel, split: str) -> dict[str, float]:
        return evaluate_predictions(predict(model, dataset, split, batch_size)).as_flat()

    return evaluate
