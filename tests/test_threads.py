"""Threads of OpenMP, as whoever imports the package first has them."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("asked", "wanted"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_that_wait_sleep_unless_asked_otherwise(asked, wanted):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({} if asked is None else {"OMP_WAIT_POLICY": asked})
    command = [sys.executable, "-c", "import infnet"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    assert "OPENMP DISPLAY ENVIRONMENT" in told
    assert f"OMP_WAIT_POLICY = '{wanted}'" in told
