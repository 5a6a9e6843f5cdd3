"""Reading a spec from YAML: every complaint names the file, the line, the field and the way out."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import ValidationError

from infnet.errors import InfnetError, SpecError
from infnet.features import Feature, feature_kinds, parse_feature
from infnet.schema.documents import Document, Location, known_fields, read_text
from infnet.schema.spec import DatasetSpec

__all__ = ["load_spec", "parse_spec"]


def parse_spec(text: str, source: str = "spec") -> DatasetSpec:
    """A spec from YAML text.

    Raises:
        SpecError: One line naming ``source``, the line, the field, what is wrong and the nearest known name.
    """
    document = Document(text, source, "a spec is a mapping with name, log, features, tasks and split")
    features = document.raw.get("features")
    features = features if isinstance(features, list) else []
    for index, entry in enumerate(features):
        try:
            with contextlib.suppress(ValidationError):  # is told below, with the rest
                parse_feature(entry)
        except InfnetError as error:
            raise SpecError(f"{document.place('features', index, 'kind')}: features[{index}]: {error}") from error

    def known(loc: Location) -> list[str]:
        if len(loc) > 2 and loc[0] == "features" and isinstance(loc[1], int):
            return list(feature_kinds().get(features[loc[1]].get("kind"), Feature).model_fields)
        return known_fields(DatasetSpec, loc)

    return document.validated(DatasetSpec, known)


def load_spec(path: Path) -> DatasetSpec:
    """A spec from a YAML file; see :func:`parse_spec`."""
    return parse_spec(read_text(path), str(path))
