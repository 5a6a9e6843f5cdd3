"""PyTorch's process-wide settings for the length of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic as _deterministic

from infnet.errors import SpecError
from infnet.training.config import TrainConfig
from infnet.training.memory import keep_freed_memory

deterministic: Any = _deterministic  # its setting is a property of the module object, which types cannot say

__all__ = ["find_device", "training_environment"]


def find_device(config: TrainConfig) -> torch.device:
    """The device to train on.

    Raises:
        SpecError: There is none of that name here.
    """
    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(
            f"train.device: '{config.device}' cannot be used here ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


@contextmanager
def training_environment(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Seed, threads and determinism as configured; afterwards everything is as it was, random numbers included."""
    if device.type == "cpu":
        keep_freed_memory()
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if config.threads is not None:
                torch.set_num_threads(config.threads)
            if config.deterministic:
                torch.use_deterministic_algorithms(True, warn_only=True)
                deterministic.fill_uninitialized_memory = False  # a check for bugs that costs a pass over memory
            torch.manual_seed(config.seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warning)
            deterministic.fill_uninitialized_memory = was_filling
