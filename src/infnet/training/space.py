"""SearchSpace: which settings tuning may choose, the same file for every model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from infnet.data.layout import Layout
from infnet.errors import SpecError, did_you_mean
from infnet.models.base import ModelConfig, build_model
from infnet.training.config import config_from, parse_sections

__all__ = ["SearchSpace", "complete_settings", "space_names"]

_PROTOCOL = ("train.epochs", "train.evaluations_per_epoch", "train.keep", "train.patience", "train.monitor")
"""What makes trials comparable."""

_ARGUMENTS = {"train.seed": "--seed", "model.name": "--model"}


@dataclass(frozen=True)
class SearchSpace:
    """Settings by name, such as ``train.learning_rate`` or ``model.width``.

    As a file it has the two mappings of a training configuration; a list holds the values to choose from, anything
    else is set in every trial.
    """

    name: str
    fixed: Mapping[str, Any]
    choices: Mapping[str, tuple[Any, ...]]

    @classmethod
    def load(cls, name: str) -> SearchSpace:
        """A space of this package, or one of your own.

        Args:
            name: ``small``, ``paper``, or the path of a YAML file.

        Raises:
            SpecError: One line that names the file, the setting, what was found and what was wanted.
        """
        if name in space_names():
            text = files("infnet.training").joinpath("spaces", f"{name}.yaml").read_text(encoding="utf-8")
            return cls.parse(text, name)
        try:
            return cls.parse(Path(name).read_text(encoding="utf-8"), name)
        except OSError as error:
            raise SpecError(
                f"space {name}: cannot be read ({error.strerror}); "
                f"give {', '.join(space_names())} or a YAML file of your own"
            ) from error
        except UnicodeDecodeError as error:
            raise SpecError(f"space {name}: is not UTF-8 text; a search space is a YAML file") from error

    @classmethod
    def parse(cls, text: str, name: str) -> SearchSpace:
        """A space from YAML text.

        Raises:
            SpecError: As for :meth:`load`.
        """
        fixed: dict[str, Any] = {}
        choices: dict[str, tuple[Any, ...]] = {}
        for section, content in parse_sections(text, name).items():
            check = _checked_train if section == "train" else _checked_model
            for key, found in content.items():
                full = f"{section}.{key}"
                if full in _ARGUMENTS:
                    raise SpecError(f"{name}: {full} is no part of a search space; give it with {_ARGUMENTS[full]}")
                if not isinstance(found, list):
                    fixed[full] = check(key, found, name)
                elif not found:
                    raise SpecError(f"{name}: {full} has no values to choose from; list some, or leave it out")
                elif full in _PROTOCOL:
                    raise SpecError(f"{name}: {full} is the same in all trials, found {found!r}; give one value")
                else:
                    choices[full] = tuple(check(key, value, name) for value in found)
        return cls(name, fixed, choices)

    def of_model(self, model: str, layout: Layout) -> tuple[SearchSpace, dict[str, str]]:
        """What of this space applies to a model, and why the rest does not, by setting.

        A setting that the model does not have, and a value of a setting common to all models that this one refuses,
        are left out.

        Raises:
            SpecError: The model refuses a value of a setting of its own.
        """
        own = complete_settings(model, layout, {})
        skipped: dict[str, str] = {}

        def usable(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
            key = name.removeprefix("model.")
            kept = []
            for value in values:
                if key not in own:
                    skipped[name] = f"model '{model}' has no such setting"
                    continue
                try:
                    kept.append(complete_settings(model, layout, _section("model", fixed) | {key: value})[key])
                except SpecError as error:
                    if key not in ModelConfig.model_fields:
                        raise SpecError(f"{self.name}: {error}") from error
                    skipped[name] = str(error)
            return tuple(kept)

        fixed = {name: value for name, value in self.fixed.items() if name.startswith("train.")}
        choices = {}
        for name, value in self.fixed.items():
            if name not in fixed and (kept := usable(name, [value])):
                fixed[name] = kept[0]
        for name, values in self.choices.items():
            if kept := values if name.startswith("train.") else usable(name, values):
                choices[name] = kept
        return SearchSpace(self.name, fixed, choices), skipped

    def as_json(self) -> dict[str, Any]:
        """What decides about trials, as plain mappings and lists."""
        return {"fixed": dict(self.fixed), "choices": {name: list(values) for name, values in self.choices.items()}}

    def document(self, chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The two mappings of a configuration with the fixed settings and ``chosen`` ones."""
        values = {**self.fixed, **chosen}
        return {"model": _section("model", values), "train": _section("train", values)}


def space_names() -> list[str]:
    """The spaces that come with this package."""
    found = files("infnet.training").joinpath("spaces").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def complete_settings(model: str, layout: Layout, settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of a model, defaults included.

    Raises:
        SpecError: The model, or a setting, or their combination is refused.
    """
    without_table = layout.model_copy(update={"num_rows": 1})  # refusals come from everything but its size
    with torch.random.fork_rng(devices=[]):
        return build_model(model, without_table, settings).config.model_dump(mode="json")


def _section(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{section}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def _checked_train(key: str, value: Any, source: str) -> Any:
    return config_from({"train": {key: value}}, source).document()["train"][key]


def _checked_model(key: str, value: Any, source: str) -> Any:
    """What only one kind of model has is checked when that model is known."""
    if key in ModelConfig.model_fields:
        try:
            return ModelConfig.model_validate({key: value}).model_dump(mode="json")[key]
        except ValidationError as error:
            raise SpecError(f"{source}: model.{key}: {error.errors()[0]['msg']}, found {value!r}") from error
    kinds: list[type[ModelConfig]] = [ModelConfig]
    for kind in kinds:
        kinds += kind.__subclasses__()
    known = {name for kind in kinds for name in kind.model_fields}
    if key not in known:
        raise SpecError(f"{source}: no model has a setting '{key}'{did_you_mean(key, known)}")
    return value
