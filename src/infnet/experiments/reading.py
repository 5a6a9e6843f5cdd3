"""Reading experiments from YAML: every complaint names the file, the line, the setting and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from infnet.errors import SpecError, did_you_mean
from infnet.experiments.spec import ExperimentsSpec

__all__ = ["load_experiments", "parse_experiments"]


def load_experiments(path: Path) -> ExperimentsSpec:
    """Experiments from a YAML file; see :func:`parse_experiments`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of an experiments file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text; experiments are declared in a YAML file") from error
    return parse_experiments(text, str(path))


def parse_experiments(text: str, source: str = "experiments") -> ExperimentsSpec:
    """Experiments from YAML text.

    Raises:
        SpecError: One line naming ``source``, the line, the setting, what is wrong and the nearest known name.
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_keys(document, source)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{source}, line {line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{source}, line {line}: not valid YAML: {error.reason}") from error
    except (ValueError, RecursionError) as error:  # a date such as 2026-13-40; lists within lists without end
        raise SpecError(f"{source}: not valid YAML: {error}; write dates such as 2026-05-04T00:00:00Z") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{source}, line 1: found no mapping, wanted one with experiments and perhaps layers")
    try:
        return ExperimentsSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_message(source, document, error)) from error


def _check_keys(document: yaml.Node | None, source: str) -> None:
    """YAML itself lets a repeated key replace the first one silently."""
    todo, done = [document], set[int]()
    while todo:
        node = todo.pop()
        if node is None or id(node) in done:  # an alias can lead back to where it stands
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, value in node.value:
                here = key.start_mark.line + 1
                there = lines.setdefault(str(key.value), here)
                if there != here:
                    raise SpecError(f"{source}, line {here}: '{key.value}' stands in line {there} already; keep one")
                todo.append(value)


def _message(source: str, document: yaml.Node | None, error: ValidationError) -> str:
    # A misspelt setting also leaves the right one missing: name the misspelling first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = (*first["loc"], *first.get("ctx", {}).get("at", ()))
    loc = tuple(part for part in loc if not str(part).startswith(("function-", "list[")))
    line, path = _line_of(document, loc), ".".join(str(part) for part in loc) or "experiments"
    if first["type"] == "extra_forbidden":
        return f"{source}, line {line}: unknown setting '{path}'{did_you_mean(str(loc[-1]), _known_fields(loc))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] in ("missing", "value_error", "declaration") else f", found {first['input']!r}"
    return f"{source}, line {line}: {path}: {message[:1].lower()}{message[1:]}{found}"


def _line_of(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int:
    """Line (from 1) of the deepest part of ``loc`` that the document holds."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, node = key.start_mark.line + 1, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _known_fields(loc: tuple[int | str, ...]) -> list[str]:
    """Names (and aliases) that the declaration around ``loc`` accepts, for a suggestion."""
    model: type[BaseModel] = ExperimentsSpec
    for part in loc[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = next(iter(_models(model.model_fields[part].annotation)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The declarations that a field's type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
