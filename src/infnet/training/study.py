"""Study: the directory in which tuning keeps its trials, and the sampler that proposes the next one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from infnet.errors import ArtifactError, SpecError
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig, config_from
from infnet.training.journal import without_nan
from infnet.training.monitor import goodness

if TYPE_CHECKING:
    import optuna

__all__ = ["Study", "Trial", "TrialState", "open_study"]

Choices = Mapping[str, tuple[Any, ...]]
"""Values to choose from, by setting."""

_ATTEMPTS = 1000
"""To find settings that were not tried yet, where the sampler insists on some that were."""

TrialState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    number: int
    """From 0, the model's defaults."""
    state: TrialState
    """Pruned: worse than the median of the others after as many evaluations. Failed: see ``reason``."""
    value: float | None
    """Best of the monitored metric, up to where it was pruned; None for a failed trial."""
    settings: Mapping[str, Any]
    """Those that the space searches, by name."""
    seconds: float
    reason: str | None = None
    """Why it failed: the model refused the settings, or its loss was no number."""


class Study:
    """Trials under one description, in a database, with their results in files beside it.

    A trial counts once it has ended; one that was under way when the process died is proposed again, because what is
    proposed depends on the seed and the ended trials alone.

    Attributes:
        ended: All ended trials.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], monitor: str, study: optuna.Study) -> None:
        import optuna

        self.path, self.about, self.monitor, self._study = path, about, monitor, study
        for running in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(running.number, state=optuna.trial.TrialState.FAIL)
        ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        attributes = [trial.user_attrs for trial in study.get_trials(deepcopy=False, states=ended)]
        self.ended = [Trial(**found["trial"]) for found in attributes]
        self._configs = [found["config"] for found in attributes]

    @property
    def best(self) -> Trial | None:
        """The best complete trial, the earlier one of equals; None while there is none."""
        complete = [trial for trial in self.ended if trial.state == "complete"]
        return max(complete, key=self._goodness, default=None)

    @property
    def best_config(self) -> TrainConfig:
        """Of the best trial."""
        assert self.best is not None
        return config_from(self._configs[self.best.number], str(self.path))

    def run_path(self, number: int) -> Path:
        """Directory of a trial's run."""
        return self.path / "trials" / str(number)

    def ask_for(self, settings: Mapping[str, Any], choices: Choices) -> optuna.trial.Trial:
        """A trial with settings given; the sampler learns from those that are among the choices."""
        import optuna

        known = {name: _text(value) for name, value in settings.items() if _text(value) in _texts(choices[name])}
        if not self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
            self._study.enqueue_trial(known)
        trial = self._study.ask()
        for name in known:
            trial.suggest_categorical(name, _texts(choices[name]))
        return trial

    def ask(self, choices: Choices) -> tuple[optuna.trial.Trial, dict[str, Any]] | None:
        """A trial with settings that no ended one had, and these settings; None once everything was tried."""
        import optuna

        tried = {_text(trial.settings) for trial in self.ended}
        random = np.random.default_rng([self.about["seed"], len(self.ended)])
        seed = int(random.integers(2**31))
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False)
        trial = self._study.ask()
        texts = {name: trial.suggest_categorical(name, _texts(values)) for name, values in choices.items()}
        chosen = {name: json.loads(text) for name, text in texts.items()}
        if _text(chosen) not in tried:
            return trial, chosen
        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        for _ in range(_ATTEMPTS):
            chosen = {name: values[random.integers(len(values))] for name, values in choices.items()}
            if _text(chosen) not in tried:
                return self.ask_for(chosen, choices), chosen
        return None

    def tell(self, asked: optuna.trial.Trial, trial: Trial, config: Mapping[str, Any]) -> None:
        """End a trial."""
        import optuna

        asked.set_user_attr("trial", asdict(trial))
        asked.set_user_attr("config", config)
        if trial.state == "complete":
            self._study.tell(asked, self._goodness(trial))
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        self.ended.append(trial)
        self._configs.append(config)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write ``report.json``, with further ``facts``, and ``best.yaml``; drop the checkpoints of other trials."""
        best = self.best
        report = {
            **{name: self.about[name] for name in ("model", "fingerprint", "seed")},
            "monitor": self.monitor,
            **facts,
            "trials": [without_nan(asdict(trial)) for trial in self.ended],
            "best": None if best is None else asdict(best),
        }
        write_atomically(self.path / "report.json", json.dumps(report, indent=1) + "\n")
        if best is not None:
            text = yaml.safe_dump(self.best_config.document(), sort_keys=False)
            write_atomically(self.path / "best.yaml", text)
        for trial in self.ended:
            if trial is not best:
                for checkpoint in self.run_path(trial.number).glob("*.safetensors"):
                    checkpoint.unlink()

    def _goodness(self, trial: Trial) -> float:
        assert trial.value is not None
        return goodness(self.monitor, trial.value)


@contextmanager
def open_study(path: Path, about: Mapping[str, Any], monitor: str) -> Iterator[Study]:
    """Begin the study in a directory, or go on with it.

    Args:
        path: The directory, empty or a study's.
        about: What the study is of; the same in every call.
        monitor: Metric that trials are compared by.

    Raises:
        SpecError: The directory holds another study, or something else, or Optuna is not installed.
        ArtifactError: The study's database is damaged.
    """
    try:
        import optuna
        from sqlalchemy import URL
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise SpecError("tuning needs Optuna, which is not installed; pip install 'infnet[tune]'") from error
    database = path / "study.db"
    if path.exists() and not database.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SpecError(f"{path}: is not empty and holds no study; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)
    try:
        storage = optuna.storages.RDBStorage(url)
        try:
            study = optuna.create_study(
                storage=storage,
                study_name="infnet",
                direction="maximize",
                # The first of four evaluations says little, and a rate that warms up slowly would not survive it.
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
                load_if_exists=True,
            )
            _check_same(path, study, about)
            yield Study(path, about, monitor, study)
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        what = str(error).splitlines()[0]
        raise ArtifactError(f"{database}: the study is damaged ({what}); choose another --out") from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def _check_same(path: Path, study: optuna.Study, about: Mapping[str, Any]) -> None:
    found = study.user_attrs.get("about")
    if found is None:
        study.set_user_attr("about", about)
        return
    for name, wanted in about.items():
        if json.dumps(found[name]) != json.dumps(wanted):  # in which order choices stand matters to the sampler
            what = {"fingerprint": "dataset"}.get(name, name)
            raise SpecError(
                f"{path}: holds a study of {what} {_short(found[name])}, asked to go on with {_short(wanted)}; "
                "choose another --out"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}.."


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _texts(values: tuple[Any, ...]) -> list[str]:
    """As Optuna's choices, which cannot be lists."""
    return [_text(value) for value in values]
