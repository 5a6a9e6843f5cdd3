"""Copies of a bundle in which some files hold something else, with checksums that are right."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from infnet.export.bundle import MANIFEST, Bundle, FileRecord, sha256_of
from infnet.export.learning import LEARNING_FILES
from infnet.schema import load_spec

__all__ = ["altered_copy", "with_windows", "without_checkpoint"]


def altered_copy(bundle: Bundle, path: Path, files: Mapping[str, bytes | None]) -> Path:
    """A copy with other contents by file name; None removes the file."""
    shutil.copytree(bundle.path, path)
    records = dict(bundle.manifest.files)
    for name, content in files.items():
        file = path / name
        if content is None:
            file.unlink()
            del records[name]
        else:
            file.write_bytes(content)
            records[name] = FileRecord(size=file.stat().st_size, sha256=sha256_of(file))
    (path / MANIFEST).write_text(bundle.manifest.model_copy(update={"files": records}).model_dump_json())
    return path


def without_checkpoint(bundle: Bundle, path: Path) -> Path:
    """A bundle that serves, but carries nothing to go on training from."""
    return altered_copy(bundle, path, dict.fromkeys(LEARNING_FILES))


def with_windows(bundle: Bundle, path: Path, **window_s: float) -> Path:
    """A bundle whose tasks wait for their labels so long."""
    spec = load_spec(bundle.path / "spec.yaml")
    tasks = [task.model_copy(update={"window_s": window_s[task.name]}) for task in spec.tasks]
    declared = spec.model_copy(update={"tasks": tasks}).model_dump_json()
    return altered_copy(bundle, path, {"spec.yaml": declared.encode()})
