"""Reading experiments from YAML: every complaint names the file, the line, the setting and the way out."""

from __future__ import annotations

from pathlib import Path

from infnet.experiments.spec import ExperimentsSpec
from infnet.schema.documents import Document, load_document

__all__ = ["DECLARED", "load_experiments", "parse_experiments"]

DECLARED = "experiments.yaml"
"""In an event log: the experiments file of the service that began to write it last."""

_WHAT = "found no mapping, wanted one with experiments and perhaps layers"


def load_experiments(path: Path) -> ExperimentsSpec:
    """Experiments from a YAML file; see :func:`parse_experiments`."""
    return load_document(path, _WHAT).validated(ExperimentsSpec)


def parse_experiments(text: str, source: str = "experiments") -> ExperimentsSpec:
    """Experiments from YAML text.

    Raises:
        SpecError: One line naming ``source``, the line, the setting, what is wrong and the nearest known name.
    """
    return Document(text, source, _WHAT).validated(ExperimentsSpec)
