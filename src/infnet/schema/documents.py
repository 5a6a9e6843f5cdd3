"""YAML documents that declare something: every complaint names the file, the line, the field and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from infnet.errors import SpecError, did_you_mean

__all__ = ["Document", "Location", "known_fields", "load_document", "read_text"]

_M = TypeVar("_M", bound=BaseModel)
Location = tuple[int | str, ...]


class Document:
    """A YAML mapping that knows where its parts stand.

    Args:
        text: The YAML.
        source: For messages, such as the file.
        what: It should be: ``a spec is a mapping with ..``.

    Attributes:
        raw: Its plain values.

    Raises:
        SpecError: It is no YAML, no mapping, or has a key twice.
    """

    def __init__(self, text: str, source: str, what: str) -> None:
        self._source = source
        try:
            self._node = yaml.compose(text, Loader=yaml.SafeLoader)
            raw = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            problem = ", ".join(part for part in (error.context, error.problem) if part)
            raise SpecError(f"{source}, line {line}: not valid YAML: {problem}") from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise SpecError(f"{source}, line {line}: not valid YAML: {error.reason}") from error
        except (RecursionError, ValueError) as error:
            raise SpecError(f"{source}, line 1: not valid YAML: {error}") from error
        if not isinstance(raw, dict):
            raise SpecError(f"{source}, line 1: {what}")
        self.raw: dict[Any, Any] = raw
        self._check_keys()

    def place(self, *loc: int | str) -> str:
        """File and line of a part, for messages."""
        return f"{self._source}, line {self._line(loc)}"

    def validated(self, kind: type[_M], known: Callable[[Location], list[str]] | None = None) -> _M:
        """The document as a declaration.

        Args:
            kind: Of declaration.
            known: Names that may stand at a location, for a suggestion; those of the kind by default.

        Raises:
            SpecError: It does not fit.
        """
        try:
            return kind.model_validate(self.raw)
        except ValidationError as error:
            raise SpecError(self._complaint(error, known or (lambda loc: known_fields(kind, loc)))) from error

    def _complaint(self, error: ValidationError, known: Callable[[Location], list[str]]) -> str:
        # A misspelt setting also leaves the right one missing: name the misspelling first.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        loc = tuple(part for part in first["loc"] if not str(part).startswith(("function-", "list[")))
        loc += first.get("ctx", {}).get("at", ())
        place, path = self.place(*loc), ".".join(str(part) for part in loc) or "spec"
        if first["type"] == "extra_forbidden":
            return f"{place}: unknown setting '{path}'{did_you_mean(str(loc[-1]), known(loc))}"
        found = "" if first["type"] in ("missing", "value_error", "declaration") else f", found {first['input']!r}"
        return f"{place}: {path}: {first['msg'].removeprefix('Value error, ')}{found}"

    def _line(self, loc: Location) -> int:
        """Line (from 1) of the deepest part of ``loc`` that the document holds."""
        line, node = 1, self._node
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

    def _check_keys(self) -> None:
        """YAML itself lets a repeated key replace the first one silently."""
        todo: list[yaml.Node | None] = [self._node]
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
                        raise SpecError(
                            f"{self._source}, line {here}: '{key.value}' stands in line {there} already; keep one"
                        )
                    todo.append(value)


def load_document(path: Path, what: str) -> Document:
    """A document from a file.

    Args:
        path: Of the file.
        what: It should be, as in :class:`Document`.

    Raises:
        SpecError: The file cannot be read, or see :class:`Document`.
    """
    return Document(read_text(path), str(path), what)


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        SpecError: It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text; give the path of a YAML file") from error


def known_fields(kind: type[BaseModel], loc: Location) -> list[str]:
    """Names that a declaration accepts beside the last part of a location."""
    here: list[type[BaseModel]] = [kind]
    for part in loc[:-1]:
        inside = [model for one in here for model in _inside(one, part)]
        here = inside or here
    return sorted({field.alias or name for model in here for name, field in model.model_fields.items()})


def _inside(kind: type[BaseModel], part: int | str) -> Iterator[type[BaseModel]]:
    field = kind.model_fields.get(str(part))
    return _models(field.annotation) if field is not None else iter(())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
