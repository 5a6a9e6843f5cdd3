"""TrainConfig: everything that decides how a run goes, as one validated YAML file with overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infnet.data.layout import Layout
from infnet.data.sessions import SessionGrouping
from infnet.errors import SpecError, did_you_mean
from infnet.training.monitor import metric_names
from infnet.training.schedule import ScheduleKind
from infnet.training.table_optimizer import OptimizerKind

__all__ = ["TrainConfig", "config_from", "load_config", "parse_config", "parse_sections"]


class TrainConfig(BaseModel):
    """How to train which model.

    As a file it is two mappings: ``model`` holds the model's ``name`` and its own settings, ``train`` the rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    model: str = "infnet"
    """Name in the model registry."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The model's own settings, checked when it is built."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training rows, unless early stopping ends the run before. Id embeddings of interaction logs tend
    to overfit in the second pass (docs/recipe.md)."""
    batch_size: int = Field(default=512, ge=1)
    """Rows per step."""
    sessions: SessionGrouping | None = None
    """Group a user's rows of one session into one request; None makes each row a request."""
    optimizer: OptimizerKind = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the dense parameters, after warm-up."""
    embedding_learning_rate: float | None = Field(default=3e-3, gt=0)
    """Of the embedding table, whose rows are updated only when a batch reads them; None takes ``learning_rate``."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    eps: float | None = Field(default=None, gt=0)
    """Added to the denominator; None takes 1e-8 for adam and adamw, 1e-10 for adagrad."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 on the dense parameters: added to the gradient, or decoupled from it by adamw."""
    embedding_l2: float = Field(default=0.0, ge=0)
    """The same for the embedding rows that a batch reads."""
    schedule: ScheduleKind = "constant"
    """Of all learning rates after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rates grow linearly to their full value."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of all gradients together; larger ones are scaled down to it. None leaves them as they are."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` runs the forward pass under autocast; parameters and losses stay float32."""
    task_weighting: Literal["fixed", "uncertainty", "gradnorm", "pcgrad", "cagrad"] = "uncertainty"
    """How the tasks' losses are added up (:mod:`infnet.training.objectives`), or their gradients where these point
    against each other (:mod:`infnet.training.surgery`)."""
    gradnorm_alpha: float = Field(default=1.5, ge=0)
    """How strongly gradnorm pulls slower tasks along."""
    gradnorm_rate: float = Field(default=0.01, gt=0, lt=1)
    """Step of gradnorm's task weights."""
    gradnorm_every: int = Field(default=4, ge=1)
    """Training steps from one look at the tasks' gradients, a backward pass for each, to the next."""
    cagrad_c: float = Field(default=0.5, ge=0, lt=1)
    """How far from the mean gradient cagrad may go, as a share of its norm; with 0 it is the plain sum."""
    fake_negatives: tuple[str, ...] = ()
    """Binary tasks whose labels come late: every impression is a negative at first, and a row of its own besides once
    it turns out positive (:func:`infnet.training.objectives.task_losses`)."""
    monitor: str = "mean"
    """Validation metric for early stopping and the best checkpoint: ``mean_auc`` and ``mean_gauc`` over the binary
    tasks, ``mean``, the average of both, or ``TASK_METRIC`` such as ``click_auc``, ``like_gauc``, ``click_logloss``,
    ``watch_time_r2``."""
    patience: int = Field(default=5, ge=1)
    """Evaluations without a better value, of those that ``keep`` lets count, after which training stops."""
    evaluations_per_epoch: int = Field(default=1, ge=1)
    """Evenly spread, the last one at the end of the epoch."""
    keep: Literal["evaluation", "epoch"] = "evaluation"
    """Which checkpoints may become the best one: those of any evaluation, or those at the end of an epoch alone. Then
    the evaluations in between only show how it goes: where validation is noisy, the best of several is a lucky one."""
    log_every: int = Field(default=50, ge=1)
    """Steps between two lines of the training log."""
    checkpoint_every: int | None = Field(default=500, ge=1)
    """Steps between two checkpoints to resume from, beside the one at each evaluation."""
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    """Where to train, in PyTorch's words: ``cpu``, ``cuda``, ``cuda:1``."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of PyTorch; None leaves them as they are."""
    prefetch: int = Field(default=2, ge=0)
    """Batches made ahead by a background thread; 0 makes each when it is needed."""
    deterministic: bool = True
    """Use algorithms that give the same bits every time, where PyTorch has a choice."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the log."""

    @field_validator("betas")
    @classmethod
    def _betas_are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("both betas are at least 0 and below 1")
        return value

    @property
    def resolved_embedding_learning_rate(self) -> float:
        """Of the embedding table."""
        return self.learning_rate if self.embedding_learning_rate is None else self.embedding_learning_rate

    @property
    def resolved_eps(self) -> float:
        """The eps in force."""
        return self.eps if self.eps is not None else (1e-10 if self.optimizer == "adagrad" else 1e-8)

    def check_monitor(self, layout: Layout) -> None:
        """See that the monitored metric is one of these tasks'.

        Raises:
            SpecError: It is not; the message suggests one.
        """
        known = metric_names(layout)
        if self.monitor not in known:
            raise SpecError(f"train.monitor: no metric '{self.monitor}'{did_you_mean(self.monitor, known)}")

    def document(self) -> dict[str, Any]:
        """As it stands in a file: plain mappings, lists and scalars."""
        train = self.model_dump(mode="json", exclude={"model", "settings"})
        return {"model": {"name": self.model, **self.settings}, "train": train}


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, begun: TrainConfig | None = None, **values: Any
) -> TrainConfig:
    """A configuration from a YAML file, then ``values``, then overrides, the later ones winning.

    Args:
        path: YAML file with the mappings ``model`` and ``train``; None takes ``begun``.
        overrides: ``model.SETTING=VALUE`` or ``train.SETTING=VALUE``, the value in YAML's notation.
        begun: What to start from without a file, such as the settings of a run to resume; None takes the defaults.
        values: Fields of :class:`TrainConfig`; those that are None are left out.

    Raises:
        SpecError: One line that names file or override, the setting, what was found and what was wanted.
    """
    if path is None:
        document: dict[str, Any] = {} if begun is None else begun.document()
    else:
        try:
            document = parse_sections(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}); give a training configuration") from error
        except UnicodeDecodeError as error:
            raise SpecError(f"{path}: is not UTF-8 text; a training configuration is a YAML file") from error
        config_from(document, str(path))  # so that a mistake in the file is not blamed on an override
    for name, value in values.items():
        if value is not None:
            section, key = ("model", "name") if name == "model" else ("train", name)
            document.setdefault(section, {})[key] = value
    for override in overrides:
        _override(document, override)
    return config_from(document, "--set" if overrides else "settings")


def parse_config(text: str, source: str = "config") -> TrainConfig:
    """A configuration from YAML text.

    Raises:
        SpecError: One line that names ``source``, the setting, what was found and what was wanted.
    """
    return config_from(parse_sections(text, source), source)


def parse_sections(text: str, source: str) -> dict[str, Any]:
    """The mappings ``model`` and ``train`` of YAML text, their contents not checked yet.

    Raises:
        SpecError: One line that names ``source`` and what is wrong with the text.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}" if mark is not None else source
        what = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise SpecError(f"{place}: not valid YAML: {what}") from error
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise SpecError(f"{source}: a training configuration is a mapping with model and train, found {document!r}")
    for section, content in document.items():
        if section not in ("model", "train"):
            hint = f"; write train.{section}" if section in TrainConfig.model_fields else ""
            raise SpecError(f"{source}: unknown section '{section}', wanted model or train{hint}")
        if not isinstance(content, dict):
            example = "{name: infnet}" if section == "model" else "{epochs: 10}"
            raise SpecError(f"{source}: {section} is a mapping such as {example}, found {content!r}")
    return cast(dict[str, Any], document)


def config_from(document: Mapping[str, Any], source: str) -> TrainConfig:
    """A configuration from its two mappings.

    Raises:
        SpecError: One line that names ``source``, the setting, what was found and what was wanted.
    """
    settings = dict(document.get("model", {}))
    train = document.get("train", {})
    for key in train:
        if key in ("model", "settings") or key not in TrainConfig.model_fields:
            known = set(TrainConfig.model_fields) - {"model", "settings"}
            raise SpecError(f"{source}: unknown setting train.{key}{did_you_mean(str(key), known)}")
    values = {**train, "settings": settings}
    if "name" in settings:
        values["model"] = settings.pop("name")
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        name = "model.name" if path == "model" else f"train.{path}"
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{source}: {name}: {message}, found {first['input']!r}") from error


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and key) or section not in ("model", "train"):
        field = path.strip()
        hint = f"; did you mean train.{field}?" if field in TrainConfig.model_fields else ""
        raise SpecError(f"--set {override}: wanted model.SETTING=VALUE or train.SETTING=VALUE{hint}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: '{text}' is no YAML value; put it in quotes") from error
    *outer, last = key.split(".")
    at = document.setdefault(section, {})
    for part in outer:
        at[part] = dict(at[part]) if isinstance(at.get(part), dict) else {}
        at = at[part]
    at[last] = value
