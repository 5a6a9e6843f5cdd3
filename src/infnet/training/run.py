"""Run: the directory in which one training run keeps what it was given and what it found."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

import infnet
from infnet.data.dataset import Dataset
from infnet.data.layout import Layout, Manifest
from infnet.errors import ArtifactError, SpecError
from infnet.models.base import RankingModel, build_model
from infnet.training.checkpoint import load_checkpoint, load_parameters, save_checkpoint, write_atomically
from infnet.training.config import TrainConfig, parse_config
from infnet.training.journal import without_nan

__all__ = ["RUN_VERSION", "Run"]

RUN_VERSION = 1

_FREE = {"patience", "log_every", "checkpoint_every", "device", "threads", "prefetch", "deterministic", "tensorboard"}
"""Settings that a resumed run may change."""

_CONTENTS = (
    "run.json",
    "config.yaml",
    "manifest.json",
    "metrics.jsonl",
    "report.json",
    "best.safetensors",
    "last.safetensors",
    "tensorboard",
)


class Run:
    """A run directory.

    It holds ``run.json`` (format, dataset, versions, seed), ``config.yaml`` (every setting in force),
    ``manifest.json`` (the dataset's), ``metrics.jsonl`` (a line per evaluation and per ``log_every`` steps),
    ``tensorboard/``, ``best.safetensors`` (the model with the best monitored metric), ``last.safetensors`` (all that
    is needed to go on) and, once training has ended, ``report.json``.
    """

    def __init__(self, path: Path, about: dict[str, Any], config: TrainConfig, manifest: Manifest) -> None:
        self.path = path
        self.about = about
        self.config = config
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path | str, dataset: Dataset, config: TrainConfig, *, force: bool = False) -> Run:
        """Begin a run in a directory that is empty or not there yet.

        Args:
            path: The directory.
            dataset: What is trained on.
            config: The settings, the model's own complete.
            force: Replace a run that is there.

        Raises:
            SpecError: The directory holds a run already, or something else.
        """
        path = Path(path)
        if cls.exists(path) and not force:
            raise SpecError(
                f"{path}: holds a run already; pass --resume to go on, --force to replace it, or another --out"
            )
        if not cls.exists(path) and path.exists() and (not path.is_dir() or _foreign(path)):
            raise SpecError(f"{path}: is not empty and holds no run; choose another --out")
        about = {
            "format_version": RUN_VERSION,
            "dataset": str(dataset.path.resolve()),
            "fingerprint": dataset.manifest.fingerprint,
            "seed": config.seed,
            "versions": _versions(),
        }
        path.mkdir(parents=True, exist_ok=True)
        _clear(path)
        write_atomically(path / "config.yaml", yaml.safe_dump(config.document(), sort_keys=False))
        write_atomically(path / "manifest.json", dataset.manifest.model_dump_json(indent=1))
        write_atomically(path / "run.json", json.dumps(about, indent=1))  # last: from here on it is a run
        return cls(path, about, config, dataset.manifest)

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Open a run.

        Raises:
            ArtifactError: There is none, it is damaged, or another version of this package wrote it.
        """
        path = Path(path)
        if not cls.exists(path):
            raise ArtifactError(f"{path}: is no run (no run.json); give a directory that 'infnet train --out' wrote")
        about = _read_json(path / "run.json")
        found = about.get("format_version")
        if found != RUN_VERSION:
            raise ArtifactError(
                f"{path}: is a run of format {found}, this package reads format {RUN_VERSION}; "
                "use the version that wrote it, or train again"
            )
        missing = {"dataset", "fingerprint"} - set(about)
        if missing:
            raise _damaged(path / "run.json", f"has no {min(missing)}")
        try:
            manifest = Manifest.model_validate(_read_json(path / "manifest.json"))
            config = parse_config((path / "config.yaml").read_text(encoding="utf-8"), str(path / "config.yaml"))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise _damaged(path / "manifest.json", f"{where}: {error.errors()[0]['msg']}") from error
        except SpecError as error:
            raise ArtifactError(f"{error}; the run is damaged or of another version, train again") from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path / "config.yaml", str(error)) from error
        return cls(path, about, config, manifest)

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether a directory holds a run."""
        return (Path(path) / "run.json").is_file()

    @property
    def dataset_path(self) -> Path:
        """Where the dataset lay when the run began."""
        return Path(self.about["dataset"])

    @property
    def layout(self) -> Layout:
        """What the model was built from."""
        return self.manifest.layout

    @property
    def best_path(self) -> Path:
        """The checkpoint with the best monitored metric."""
        return self.path / "best.safetensors"

    @property
    def last_path(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "last.safetensors"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end."""
        return (self.path / "report.json").is_file()

    @cached_property
    def report(self) -> dict[str, Any]:
        """``report.json``: the validation metrics of the best checkpoint and how training went.

        Raises:
            ArtifactError: Training has not ended, or the file is damaged.
        """
        if not self.is_finished:
            raise ArtifactError(f"{self.path}: training has not ended (no report.json); finish it with --resume")
        return _read_json(self.path / "report.json")

    def go_on_with(self, config: TrainConfig) -> None:
        """Prepare to resume under a configuration that leads to the same result, and remember it.

        More ``epochs`` (under a constant schedule) and another ``patience`` are welcome.

        Raises:
            SpecError: A setting that decides about the result differs from the run's.
        """
        free = _FREE | ({"epochs"} if self.config.schedule == "constant" else set())
        old, new = self.config.model_dump(), config.model_dump()
        for name in TrainConfig.model_fields:
            if old[name] != new[name] and name not in free:
                setting = {"model": "model.name", "settings": "model"}.get(name, f"train.{name}")
                raise SpecError(
                    f"{self.path}: was begun with {setting} {old[name]!r}, asked to resume with {new[name]!r}; "
                    "resume with the run's own settings, or choose another --out"
                )
        self.config = config
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config.document(), sort_keys=False))

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_atomically(self.path / "report.json", json.dumps(without_nan(report), indent=1))
        self.__dict__.pop("report", None)

    def save_best(self, model: RankingModel, state: Mapping[str, Any]) -> None:
        """Make ``model`` the best checkpoint; ``state`` says when and how good."""
        save_checkpoint(self.best_path, model.state_dict(), state)

    def load_model(self) -> RankingModel:
        """The best checkpoint's model, in evaluation mode, on the CPU.

        Raises:
            ArtifactError: There is no checkpoint yet, it is damaged, or it does not fit the model.
        """
        checkpoint = load_checkpoint(self.best_path)
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, then overwritten
            model = build_model(self.config.model, self.layout, self.config.settings)
        load_parameters(model, checkpoint, self.best_path)
        return model.eval()

    def check_dataset(self, dataset: Dataset) -> None:
        """See that a dataset is the one the run was trained on.

        Raises:
            ArtifactError: It is not.
        """
        wanted, found = self.about["fingerprint"], dataset.manifest.fingerprint
        if wanted != found:
            raise ArtifactError(
                f"{dataset.path}: has the fingerprint {found[:12]}, but {self.path} was trained on {wanted[:12]} "
                f"({self.dataset_path}); give that dataset, or train on this one"
            )


def _versions() -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "numpy", "polars")}
    return {
        "infnet": infnet.__version__,
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _foreign(path: Path) -> bool:
    """Whether a directory without run.json holds more than the beginnings of a run that was killed there."""
    own = {"config.yaml", "manifest.json", ".config.yaml.tmp", ".manifest.json.tmp", ".run.json.tmp"}
    return any(entry.name not in own for entry in path.iterdir())


def _clear(path: Path) -> None:
    """Remove a run's own files, run.json first, and nothing else."""
    for name in _CONTENTS:
        entry = path / name
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
            entry.with_name(f".{name}.tmp").unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "is no JSON object")
    return content


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: the run is damaged ({what}); restore it from a copy, or train again")
