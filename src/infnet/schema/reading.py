"""Reading a spec from YAML: every complaint names the file, the line, the field and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from infnet.errors import InfnetError, SpecError, did_you_mean
from infnet.features import Feature, feature_kinds, parse_feature
from infnet.schema.spec import Behaviour, DatasetSpec, LogTable, SideTable, Split, Task

__all__ = ["load_spec", "parse_spec"]


def parse_spec(text: str, source: str = "spec") -> DatasetSpec:
    """A spec from YAML text.

    Raises:
        SpecError: One line naming ``source``, the line, the field, what is wrong and the nearest known name.
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"{source}, line {line}: not valid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{source}, line {line}: not valid YAML: {error.reason}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{source}, line 1: a spec is a mapping with name, log, features, tasks and split")
    _check_keys(document, source)
    try:
        return DatasetSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(_spec_message(source, document, raw, error)) from error
    except InfnetError as error:
        # Raised by a feature's own parser, which knows no position; find the entry it complained about.
        for index, entry in enumerate(raw.get("features") or []):
            try:
                parse_feature(entry)
            except InfnetError:
                line = _line_of(document, ("features", index, "kind"))
                raise SpecError(f"{source}, line {line}: features[{index}]: {error}") from error
        raise


def load_spec(path: Path) -> DatasetSpec:
    """A spec from a YAML file; see :func:`parse_spec`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a dataset spec") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text; a dataset spec is a YAML file") from error
    return parse_spec(text, str(path))


def _check_keys(document: yaml.Node | None, source: str) -> None:
    """YAML itself lets a repeated key replace the first one silently."""
    todo: list[yaml.Node | None] = [document]
    done: set[int] = set()
    while todo:
        node = todo.pop()
        if node is None or id(node) in done:  # an alias can lead back to where it stands
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            first_by_name: dict[Any, yaml.Node] = {}
            for key, value in node.value:
                first = first_by_name.setdefault(key.value, key)
                if first is not key:
                    there, here = (which.start_mark.line + 1 for which in (first, key))
                    raise SpecError(f"{source}, line {here}: '{key.value}' stands in line {there} already; keep one")
                todo.append(value)


def _spec_message(source: str, document: yaml.Node | None, raw: Any, error: ValidationError) -> str:
    # A misspelt setting also leaves the right one missing: name the misspelling first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = tuple(part for part in first["loc"] if not str(part).startswith(("function-", "list[")))
    loc += first.get("ctx", {}).get("at", ())
    line = _line_of(document, loc)
    path = ".".join(str(part) for part in loc) or "spec"
    if first["type"] == "extra_forbidden":
        return f"{source}, line {line}: unknown setting '{path}'{did_you_mean(str(loc[-1]), _known_fields(raw, loc))}"
    found = "" if first["type"] in ("missing", "value_error", "declaration") else f", found {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}, line {line}: {path}: {message}{found}"


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


def _known_fields(raw: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Names the declaration around ``loc`` accepts, for a suggestion."""
    model: Any = DatasetSpec
    where = {"log": LogTable, "user": SideTable, "item": SideTable, "split": Split}
    if len(loc) > 1 and loc[0] in where:
        model = where[str(loc[0])]
    elif len(loc) > 2 and loc[0] == "behaviours":
        model = Behaviour
    elif len(loc) > 2 and loc[0] == "tasks":
        model = Task
    elif len(loc) > 2 and loc[0] == "features" and isinstance(loc[1], int):
        model = feature_kinds().get(raw["features"][loc[1]].get("kind"), Feature)
    return list(model.model_fields)
