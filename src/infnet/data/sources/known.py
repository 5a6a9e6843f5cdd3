"""Specs of published datasets, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from infnet.errors import SpecError, did_you_mean
from infnet.schema import DatasetSpec, parse_spec

__all__ = ["known_spec", "known_specs"]


@dataclass(frozen=True)
class _Source:
    """How a name becomes a spec: a file of ``data/specs``, with ``{word}`` replaced, and a file of additions."""

    file: str
    words: dict[str, str]
    added: str | None = None


_SOURCES = {
    **{
        f"kuairand-{version}{suffix}": _Source("kuairand.yaml", {"version": version}, added)
        for version in ("pure", "1k", "27k")
        for suffix, added in (("", "kuairand-statistics.yaml"), ("-nostats", None))
    },
    "qk-video": _Source("tenrec.yaml", {"version": "qk-video", "file": "QK-video"}),
    "qb-video": _Source("tenrec.yaml", {"version": "qb-video", "file": "QB-video"}),
    "synthetic": _Source("synthetic.yaml", {}),
}


def known_specs() -> list[str]:
    """Every name that :func:`known_spec` takes."""
    return list(_SOURCES)


def known_spec(name: str) -> DatasetSpec:
    """The spec of a published dataset.

    Raises:
        SpecError: No spec has this name; suggests the nearest one.
    """
    if name not in _SOURCES:
        raise SpecError(f"no dataset is known as '{name}'{did_you_mean(name, _SOURCES)}")
    source = _SOURCES[name]
    spec = parse_spec(_text(source.file, source.words), source.file)
    if source.added is None:
        return spec
    return _with_additions(spec, name, yaml.safe_load(_text(source.added, source.words)), source.added)


def _text(file: str, words: dict[str, str]) -> str:
    text = files("infnet.data").joinpath("specs", file).read_text(encoding="utf-8")
    for word, meant in words.items():
        text = text.replace(f"{{{word}}}", meant)
    return text


def _with_additions(spec: DatasetSpec, name: str, added: dict[str, Any], file: str) -> DatasetSpec:
    """The spec under its own name and description, with more item tables and features."""
    whole = spec.model_dump(mode="json")
    whole |= {"name": name, "description": added["description"], "features": whole["features"] + added["features"]}
    whole["item"]["parts"] += added["item"]["parts"]
    return parse_spec(yaml.safe_dump(whole), file)
