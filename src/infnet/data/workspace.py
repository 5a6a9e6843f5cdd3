"""A directory that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from infnet.errors import DataError

__all__ = ["check_replaceable", "replacing"]

_CALLERS_TO_MEND = {errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}


@contextmanager
def replacing(out: Path, marker: str) -> Iterator[Path]:
    """A temporary directory beside ``out`` that takes its place at the end; after any failure it is removed.

    An existing ``out`` is replaced only if it holds the file ``marker``, that is, if it is of the same making.

    Raises:
        DataError: ``out`` is something else, cannot be written, or the disk is full.
    """
    check_replaceable(out, marker)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        directory.chmod(0o777 & ~_umask())
        yield directory
        check_replaceable(out, marker)
        _swap(directory, out)
    except (OSError, pl.exceptions.ComputeError) as error:
        if not _is_callers_to_mend(error):
            raise
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _is_callers_to_mend(error: Exception) -> bool:
    return getattr(error, "errno", None) in _CALLERS_TO_MEND or _is_full(error)


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_replaceable(out: Path, marker: str) -> None:
    """See that ``out`` is not there, is empty, or holds the file ``marker``.

    Raises:
        DataError: It is something else.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if out.is_dir() and not out.is_symlink() and ((out / marker).is_file() or not any(out.iterdir())):
        return
    raise DataError(f"{out}: exists and was not made by this command (no {marker} in it); give another --out")


def _swap(directory: Path, out: Path) -> None:
    if not out.exists():
        directory.replace(out)
        return
    holder = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    old = holder / out.name
    try:
        out.replace(old)
        directory.replace(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.replace(out)
        if not old.exists():
            holder.rmdir()
        raise
    shutil.rmtree(holder, ignore_errors=True)


def _unwritable(out: Path, error: Exception) -> DataError:
    if _is_full(error):
        return DataError(f"{out}: the disk is full; free some space there or give another --out (nothing was kept)")
    reason, file = getattr(error, "strerror", None) or str(error), getattr(error, "filename", None)
    if file and not Path(file).resolve().is_relative_to(out.parent.resolve()):
        return DataError(f"{file}: {reason}; check the path and its rights")
    return DataError(f"{out}: cannot be written: {reason}; give another --out or mend its rights")
