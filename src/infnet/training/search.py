"""tune: the best settings of a model within a budget of trials, by the same protocol for every model.

Settings are proposed by TPE (Bergstra, Bardenet, Bengio & Kegl, "Algorithms for Hyper-Parameter Optimization",
NeurIPS 2011) as implemented by Optuna (Akiba et al., KDD 2019); trials worse than the median are given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infnet.data.dataset import Dataset
from infnet.errors import SpecError, TrainingError
from infnet.training.config import TrainConfig, config_from
from infnet.training.monitor import goodness
from infnet.training.progress import Progress
from infnet.training.space import SearchSpace, complete_settings
from infnet.training.study import Study, Trial, TrialState, open_study
from infnet.training.trainer import Evaluate, train

if TYPE_CHECKING:
    import optuna

__all__ = ["TuneProgress", "TuneResult", "tune"]


@dataclass(frozen=True)
class TuneProgress:
    """Where tuning stands."""

    number: int
    """Of the trial, from 0."""
    trials: int
    """Wanted in all."""
    best: Trial | None
    """So far."""
    training: Progress | None = None
    """Of the trial while it runs."""
    ended: Trial | None = None
    """The trial once it is over."""


@dataclass(frozen=True)
class TuneResult:
    """What a study has found so far."""

    path: Path
    monitor: str
    best_config: TrainConfig
    best_value: float
    """Of the monitored metric."""
    best_trial: int
    trials: tuple[Trial, ...]
    """All that have ended."""
    skipped: dict[str, str]
    """Settings of the space that do not apply to the model, and why."""

    @property
    def num_trials(self) -> int:
        """Ended trials, whatever their state."""
        return len(self.trials)

    @property
    def best_run(self) -> Path:
        """The best trial's run, checkpoints included."""
        return self.path / "trials" / str(self.best_trial)


def tune(
    dataset: Dataset,
    model: str,
    out: Path | str,
    *,
    trials: int,
    space: str = "small",
    epochs: int | None = None,
    seed: int = 0,
    evaluate: Evaluate,
    progress: Callable[[TuneProgress], None] | None = None,
) -> TuneResult:
    """Search a model's settings; trial 0 takes its defaults, so that the result is never worse than they are.

    Killed at any moment and called again, it begins the trial under way anew and ends with the same result as an
    uninterrupted study; called with more trials it goes on to as many. After every trial ``out`` holds ``best.yaml``
    (a training configuration), ``report.json``, ``study.db`` and ``trials/N``, a run for each trial, of which the best
    one has its checkpoints.

    Args:
        dataset: Its split ``train`` is learned from; ``evaluate`` reads ``valid``.
        model: Name in the model registry.
        out: The study's directory.
        trials: In all, those of earlier calls included; fewer where the space has no more settings to try.
        space: ``small``, ``paper`` or a YAML file; see :class:`infnet.training.space.SearchSpace`.
        epochs: Of every trial; the space's own by default.
        seed: Of the search and of every trial.
        evaluate: Metrics of a model on a split.
        progress: Called after every training step and after every trial.

    Raises:
        SpecError: The space or the model is wrong, ``out`` is taken, or Optuna is not installed.
        ArtifactError: ``study.db`` is damaged.
        DataError: There is nothing to train or validate on.
        TrainingError: Every trial failed.
    """
    if trials < 1:
        raise SpecError(f"--trials: wanted at least 1, found {trials}")
    searched = SearchSpace.load(space)
    if epochs is not None:
        searched = replace(searched, fixed={**searched.fixed, "train.epochs": epochs})
    about = {"fingerprint": dataset.manifest.fingerprint, "model": model, "space": searched.as_json(), "seed": seed}
    applicable, skipped = searched.of_model(model, dataset.layout)
    tuner = _Tuner(dataset, model, applicable, seed, evaluate, progress or (lambda _: None))
    tuner.defaults.check_monitor(dataset.layout)
    facts = {"dataset": str(dataset.path.resolve()), "space": space, "skipped": skipped}
    monitor = tuner.defaults.monitor
    with open_study(Path(out), about, monitor) as study:
        study.write(facts)
        while len(study.ended) < trials and tuner.run_trial(study, trials):
            study.write(facts)
        best = study.best
        if best is None or best.value is None:
            raise TrainingError(
                f"{out}: none of {len(study.ended)} trials came to its end ({study.ended[0].reason}); "
                "mend that, or search other settings with --space FILE.yaml"
            )
        return TuneResult(Path(out), monitor, study.best_config, best.value, best.number, tuple(study.ended), skipped)


class _Tuner:
    def __init__(
        self,
        dataset: Dataset,
        model: str,
        space: SearchSpace,
        seed: int,
        evaluate: Evaluate,
        progress: Callable[[TuneProgress], None],
    ) -> None:
        self.dataset, self.model, self.space, self.seed = dataset, model, space, seed
        self.evaluate, self.progress = evaluate, progress
        self.defaults = self._config({})

    def run_trial(self, study: Study, trials: int) -> bool:
        """Run the next trial; False if there are no settings left to try."""
        number, chosen = len(study.ended), dict[str, Any]()
        if number == 0:
            settings = self._searched(self.defaults)
            asked = study.ask_for(settings, self.space.choices)
        else:
            proposal = study.ask(self.space.choices)
            if proposal is None:
                return False
            asked, chosen = proposal
            settings = chosen
        started = time.perf_counter()
        try:
            config = self._config(chosen)
        except SpecError as error:
            trial = Trial(number, "failed", None, settings, 0.0, str(error))
            study.tell(asked, trial, {})
        else:
            state, value, reason = self._train(study, asked, config, trials)
            trial = Trial(number, state, value, settings, time.perf_counter() - started, reason)
            study.tell(asked, trial, config.document())
        self.progress(TuneProgress(number, trials, study.best, ended=trial))
        return True

    def _train(
        self, study: Study, asked: optuna.trial.Trial, config: TrainConfig, trials: int
    ) -> tuple[TrialState, float | None, str | None]:
        number, best = len(study.ended), study.best
        values: list[float] = []

        def judge(value: float) -> None:
            values.append(value)
            asked.report(goodness(config.monitor, value), len(values))
            if len(values) < config.epochs * config.evaluations_per_epoch and asked.should_prune():
                raise _Pruned

        try:
            run = train(
                self.dataset,
                config.model_copy(update={"tensorboard": False, "checkpoint_every": None}),
                study.run_path(number),
                evaluate=self.evaluate,
                force=True,
                progress=lambda at: self.progress(TuneProgress(number, trials, best, training=at)),
                on_evaluation=judge,
            )
        except _Pruned:
            return "pruned", max(values, key=lambda value: goodness(config.monitor, value)), None
        except TrainingError as error:
            return "failed", None, str(error)
        return "complete", run.report["best"]["value"], None

    def _config(self, chosen: dict[str, Any]) -> TrainConfig:
        """The model's defaults, but for the space's fixed settings and the chosen ones; all of them written out."""
        document = self.space.document(chosen)
        settings = complete_settings(self.model, self.dataset.layout, document["model"])
        document = {
            "model": {"name": self.model, **settings},
            "train": {**document["train"], "seed": self.seed},
        }
        return config_from(document, self.space.name)

    def _searched(self, config: TrainConfig) -> dict[str, Any]:
        sections = config.document()
        return {name: sections[name.split(".")[0]][name.split(".", 1)[1]] for name in self.space.choices}


class _Pruned(Exception):  # noqa: N818
    """Ends a trial's training."""
