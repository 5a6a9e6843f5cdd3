"""train: from a dataset and a configuration to a finished run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from infnet.data.dataset import Dataset
from infnet.errors import DataError, SpecError, TrainingError, did_you_mean
from infnet.models.base import RankingModel
from infnet.training.config import TrainConfig
from infnet.training.environment import find_device, training_environment
from infnet.training.journal import Journal
from infnet.training.monitor import goodness
from infnet.training.prefetch import Prefetcher
from infnet.training.progress import Progress, ProgressCallback
from infnet.training.run import Run
from infnet.training.schedule import Schedule
from infnet.training.state import TrainState
from infnet.training.step import Stepper

__all__ = ["Evaluate", "EvaluationCallback", "train"]

Evaluate = Callable[[RankingModel, str], Mapping[str, float]]
"""Metrics of a model in evaluation mode on a split, flat: ``click_auc``, ``click_gauc``, .., ``mean_auc``."""


EvaluationCallback = Callable[[float], None]
"""Called with the monitored metric's value after each evaluation, once the checkpoints are written."""


def train(
    dataset: Dataset,
    config: TrainConfig,
    out: Path | str,
    *,
    evaluate: Evaluate,
    resume: bool = False,
    force: bool = False,
    progress: ProgressCallback | None = None,
    on_evaluation: EvaluationCallback | None = None,
) -> Run:
    """Train a model until the epochs are over or validation no longer gets better.

    Killed at any moment and called again with ``resume``, it ends with the very bits of an uninterrupted run (on the
    same machine, with as many threads).

    Args:
        dataset: Its split ``train`` is learned from; ``evaluate`` reads ``valid``.
        config: The settings.
        out: The run's directory.
        evaluate: Metrics of the model on a split.
        resume: Go on with the run in ``out``; where there is none, begin it.
        force: Replace the run in ``out``.
        progress: Called after every step.
        on_evaluation: Called after every evaluation. What it raises ends training there, and ``resume`` goes on.

    Raises:
        SpecError: A setting is wrong, differs from the resumed run's, or ``out`` is taken.
        DataError: There is nothing to train or validate on.
        ArtifactError: The run to resume is damaged or belongs to another dataset.
        TrainingError: The loss or the monitored metric is no number; the best checkpoint so far stays usable.
    """
    for split in ("train", "valid"):
        if dataset.num_rows(split) == 0:
            raise DataError(f"{dataset.path}: split '{split}' has no rows; prepare it with other split dates")
    config.check_monitor(dataset.layout)
    device = find_device(config)
    with training_environment(config, device):
        state = TrainState.begin(dataset.layout, config, device)
        config = config.model_copy(update={"settings": state.model.config.model_dump(mode="json")})
        if resume and Run.exists(out):
            run = Run.load(out)
            run.check_dataset(dataset)
            run.go_on_with(config)
        else:
            run = Run.create(out, dataset, config, force=force)
        if run.last_path.exists():
            state.restore(run.last_path)
        _Trainer(dataset, run, state, evaluate, progress or _ignore, on_evaluation or _ignore).fit()
    return run


def _ignore(_: object) -> None:
    pass


class _Trainer:
    def __init__(
        self,
        dataset: Dataset,
        run: Run,
        state: TrainState,
        evaluate: Evaluate,
        progress: ProgressCallback,
        on_evaluation: EvaluationCallback,
    ) -> None:
        self.dataset, self.run, self.state = dataset, run, state
        self.evaluate, self.progress, self.on_evaluation = evaluate, progress, on_evaluation
        self.config = config = run.config
        self.position = state.position
        self.num_batches = self._count_batches(epoch=0)
        self.schedule = Schedule(config.schedule, config.warmup_steps, config.epochs * self.num_batches)
        self.stepper = Stepper(state, config, self.schedule, run.best_path)
        self.loss: float | None = None
        self.rows_per_s: float | None = None
        self.logged = (self.position.rows, self.position.train_s)

    def fit(self) -> None:
        at, events = self.position, self.run.path / "tensorboard" if self.config.tensorboard else None
        self.journal = Journal(self.run.metrics_path, events, at.step)
        try:
            while not self._is_over():
                self._epoch()
        finally:
            self.journal.close()
        report = {
            "monitor": self.config.monitor,
            "best": {"value": at.best, "step": at.best_step, "epoch": at.best_epoch},
            "metrics": at.best_metrics,
            "stopped": "early" if at.stale >= self.config.patience else "epochs",
            "epochs": self._epochs_done(),
            "steps": at.step,
            "rows": at.rows,
            "train_s": at.train_s,
            "rows_per_s": at.rows / at.train_s if at.train_s else None,
        }
        self.run.write_report(report)

    def _is_over(self) -> bool:
        return self.position.epoch >= self.config.epochs or self.position.stale >= self.config.patience

    def _epoch(self) -> None:
        config, at = self.config, self.position
        self.num_batches = self._count_batches(at.epoch)
        parts = config.evaluations_per_epoch
        places = {math.ceil(self.num_batches * part / parts) for part in range(1, parts)}
        evaluate_after = places - {self.num_batches}  # the end of the epoch has its own
        ordered = self.dataset.batches(
            "train",
            config.batch_size,
            seed=config.seed,
            epoch=at.epoch,
            skip=at.batch,
            sessions=config.sessions,
            gaps=self.state.model.layout.has_gaps,
        )
        self.state.model.train()
        with Prefetcher(ordered, config.prefetch) as batches:
            started = time.perf_counter()
            for batch in batches:
                self.stepper.step(batch)
                now = time.perf_counter()
                at.train_s += now - started
                if at.step % config.log_every == 0:
                    self._log()
                if at.batch in evaluate_after:
                    self._evaluate()
                    if self._is_over():
                        return
                elif config.checkpoint_every is not None and at.step % config.checkpoint_every == 0:
                    self._save()
                self._report()
                started = time.perf_counter()
        at.epoch += 1
        at.batch = 0
        self._evaluate()

    def _count_batches(self, epoch: int) -> int:
        config = self.config
        return self.dataset.num_batches("train", config.batch_size, config.sessions, seed=config.seed, epoch=epoch)

    def _log(self) -> None:
        self.stepper.check_finite()
        at, sums, names = self.position, self.state.sums, self.dataset.layout.task_names
        *losses, total = (sums[0] / sums[1]).tolist()
        sums.zero_()
        rows, train_s = self.logged
        self.logged = (at.rows, at.train_s)
        self.loss, self.rows_per_s = total, (at.rows - rows) / (at.train_s - train_s)
        entry = {
            "epoch": self._epochs_done(),
            "loss": total,
            "losses": dict(zip(names, losses, strict=True)),
            "weights": dict(zip(names, self.state.objective.weighting.current().tolist(), strict=True)),
            "learning_rate": self.config.learning_rate * self.schedule.factor(at.step - 1),
            "rows_per_s": self.rows_per_s,
        }
        curves = {f"train/{name}": entry[name] for name in ("loss", "learning_rate", "rows_per_s")}
        curves |= {f"train/{name}_loss": loss for name, loss in zip(names, losses, strict=True)}
        self.journal.write("train", at.step, entry, curves)

    def _evaluate(self) -> None:
        if self.state.sums[1, -1] > 0:
            self._log()
        self._report(is_evaluating=True)
        config, at, model = self.config, self.position, self.state.model
        model.eval()
        started = time.perf_counter()
        with torch.no_grad():
            metrics = {name: float(value) for name, value in self.evaluate(model, "valid").items()}
        elapsed = time.perf_counter() - started
        model.train()
        value = self._monitored(metrics)
        counts = config.keep == "evaluation" or at.batch == 0
        is_best = counts and (at.best is None or goodness(config.monitor, value) > goodness(config.monitor, at.best))
        entry = {"epoch": self._epochs_done(), "metrics": metrics, "is_best": is_best, "evaluation_s": elapsed}
        self.journal.write("evaluation", at.step, entry, {f"valid/{name}": v for name, v in metrics.items()})
        at.stale += counts
        if is_best:
            at.stale, at.best, at.best_metrics = 0, value, metrics
            at.best_step, at.best_epoch = at.step, self._epochs_done()
            self.run.save_best(model, {"step": at.step, "epoch": at.best_epoch, "metrics": metrics})
        self._save()
        self._report()
        self.on_evaluation(value)

    def _monitored(self, metrics: Mapping[str, float]) -> float:
        name = self.config.monitor
        if name not in metrics:
            raise SpecError(f"train.monitor: no metric '{name}' was measured{did_you_mean(name, metrics)}")
        if math.isnan(metrics[name]):
            raise TrainingError(
                f"{name} is no number after step {self.position.step}: the validation rows may hold labels of one kind "
                "only; choose another metric with --set train.monitor=NAME"
            )
        return metrics[name]

    def _epochs_done(self) -> float:
        return round(self.position.epoch + self.position.batch / max(1, self.num_batches), 4)

    def _save(self) -> None:
        self.stepper.check_finite()
        self.state.save(self.run.last_path)

    def _report(self, *, is_evaluating: bool = False) -> None:
        at = self.position
        self.progress(
            Progress(
                epoch=min(at.epoch + 1, self.config.epochs),
                epochs=self.config.epochs,
                batch=at.batch,
                batches=self.num_batches,
                step=at.step,
                loss=self.loss,
                rows_per_s=self.rows_per_s,
                monitor=self.config.monitor,
                best=at.best,
                stale=at.stale,
                is_evaluating=is_evaluating,
            )
        )
