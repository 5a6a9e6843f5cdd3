"""Programs that tests need and Debian has."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

__all__ = ["program"]

_LIMIT_S = 300


@cache
def program(name: str, package: str) -> str:
    """The path of a program. As root on a Debian, its package is installed where it is missing, and no service started;
    elsewhere the test is skipped."""
    found = shutil.which(name)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get") is not None:
        # Without a runlevel, Debian's scripts do not start what they install.
        quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            subprocess.run(
                ["apt-get", "--quiet", "--quiet", "-o", "DPkg::Lock::Timeout=120", *command],
                env=quietly,
                check=False,
                capture_output=True,
                timeout=_LIMIT_S,
            )
        found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; install it (Debian: apt-get install {package})")
    return found
