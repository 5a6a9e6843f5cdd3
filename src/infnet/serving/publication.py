"""Publication: a directory of versions, one of which is current. A server that watches it swaps."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infnet.errors import ArtifactError, DataError
from infnet.export.bundle import MANIFEST, Bundle
from infnet.training.checkpoint import write_atomically

__all__ = ["ModelDirectory", "Publication"]

_POINTER = "current.json"
_KEPT = 3


class Publication(BaseModel):
    """``current.json``: which version is served."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: str = Field(pattern=r"^[0-9a-f]{4,64}$")
    previous: tuple[str, ...] = ()
    """Those served before, the latest last."""
    published_ms: int
    """When, in ms since 1970."""


class ModelDirectory:
    """Versions of a model: ``versions/VERSION/`` are bundles, ``current.json`` names the one to serve.

    A version appears whole and verified, then the pointer moves by one rename: whoever reads at any moment, or after
    any crash, finds a complete version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @staticmethod
    def is_one(path: Path | str) -> bool:
        """Whether something has been published to a directory."""
        return (Path(path) / _POINTER).is_file()

    def publication(self) -> Publication:
        """What is current.

        Raises:
            ArtifactError: Nothing has been published there, or the pointer is damaged.
        """
        file = self.path / _POINTER
        try:
            return Publication.model_validate_json(file.read_bytes())
        except OSError as error:
            raise ArtifactError(
                f"{self.path}: holds no published model ({_POINTER}: {error.strerror}); use 'infnet publish'"
            ) from error
        except ValidationError as error:
            raise ArtifactError(f"{file}: is damaged ({error.errors()[0]['msg']}); publish a bundle again") from error

    def current(self) -> Path | None:
        """The bundle to serve; None if nothing has been published."""
        return self.bundle_path(self.publication().version) if self.is_one(self.path) else None

    def bundle_path(self, version: str) -> Path:
        """Where a version's bundle is."""
        return self.path / "versions" / version

    def versions(self) -> list[str]:
        """Those that are there."""
        directory = self.path / "versions"
        return sorted(p.name for p in directory.iterdir() if (p / MANIFEST).is_file()) if directory.is_dir() else []

    def publish(self, bundle: Path | str, *, keep: int = _KEPT) -> str:
        """Copy a bundle and make it current; what was current stays, one rollback away.

        Args:
            bundle: Every file of it is checked first.
            keep: Versions to keep, the current and the previous one among them.

        Returns:
            The version.

        Raises:
            ArtifactError: It is no bundle, or is damaged; nothing changes.
            DataError: The directory is something else or cannot be written.
        """
        source = Bundle.open(bundle, verify="full")
        version = source.manifest.version
        with self._locked():
            target = self.bundle_path(version)
            is_there = _is_whole(target)
            if not is_there:
                self._copy(source.path, target)
            before = self._known()
            if before is None or before.version != version or not is_there:
                served = self._oldest_first() if before is None else (*before.previous, before.version)
                previous = tuple(each for each in served if each != version)[-max(1, keep - 1) :]
                self._point(Publication(version=version, previous=previous, published_ms=_now_ms()))
            self._prune()
        return version

    def rollback(self) -> str:
        """Make the previous version current again.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        self.publication()  # before anything is made
        with self._locked():
            now = self.publication()
            if not now.previous:
                raise ArtifactError(f"{self.path}: no version was current before {now.version}; publish another bundle")
            version = now.previous[-1]
            Bundle.open(self.bundle_path(version), verify="full")
            self._point(Publication(version=version, previous=now.previous[:-1], published_ms=_now_ms()))
        return version

    def _known(self) -> Publication | None:
        """What is current; None before the first publication, or if the pointer is damaged."""
        try:
            return self.publication()
        except ArtifactError:
            return None

    def _oldest_first(self) -> tuple[str, ...]:
        """Versions that are there."""
        return tuple(sorted(self.versions(), key=lambda each: self.bundle_path(each).stat().st_ctime_ns))

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
        try:
            try:
                shutil.copytree(source, temporary / target.name)
            except OSError as error:
                raise DataError(
                    f"{self.path}: {source} cannot be copied there ({error}); see that the disk has room"
                ) from error
            Bundle.open(temporary / target.name, verify="full")
            if target.exists():  # damaged since
                target.replace(temporary / "damaged")
            (temporary / target.name).replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _point(self, publication: Publication) -> None:
        write_atomically(self.path / _POINTER, publication.model_dump_json(indent=1))

    def _prune(self) -> None:
        now = self.publication()
        for path in (self.path / "versions").iterdir():
            if path.name not in (now.version, *now.previous):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One publisher at a time."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Another publisher's lock and half-written pointer begin with a dot.
            strangers = {entry.name for entry in self.path.iterdir() if entry.name[0] != "."} - {"versions", _POINTER}
            if strangers and not self.is_one(self.path):
                raise DataError(f"{self.path}: is not empty and holds no published model; give another directory")
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written: {error.strerror}; give another directory or mend its rights"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _is_whole(path: Path) -> bool:
    try:
        Bundle.open(path, verify="full")
    except ArtifactError:
        return False
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
