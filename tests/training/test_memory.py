import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from infnet.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    return sum(float((torch.zeros(4_000_000) + i).sum()) for i in range(30))
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_used_again_without_asking_the_system():
    # Without a fixed threshold glibc now and then happens to keep the blocks by itself.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}

    def faults(how):
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 5
