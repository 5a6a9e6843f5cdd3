"""Hold a measurement to one core and one thread."""

from __future__ import annotations

import os

import torch

__all__ = ["use_one_core"]


def use_one_core() -> None:
    """Pin the process to its first core, where the system allows it, and PyTorch to one thread.

    ``taskset -c N python ..`` chooses another core.
    """
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
