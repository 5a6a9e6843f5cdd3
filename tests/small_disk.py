"""Disks small enough to be full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["mounted", "needs_mount", "resize"]

needs_mount = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A disk of its own, in memory."""
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this environment does not allow mounting")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def resize(directory: Path, size: str) -> None:
    """Give a mounted disk another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True)
