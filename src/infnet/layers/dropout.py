"""Dropout whose random numbers cost next to nothing on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout"]

_LEVELS = 65_536


class Dropout(nn.Module):
    """Zero each value with probability ``p`` in training and scale the others up; p is rounded to 1/65536.

    PyTorch draws CPU dropout masks one value at a time, which takes longer than the layer that is masked. Here a
    seed is drawn from PyTorch's generator, so that seeding and resuming work as ever, and NumPy makes the bits.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        """(...) -> (...)."""
        if not self.training or self.p == 0:
            return inputs
        if inputs.device.type != "cpu":
            return F.dropout(inputs, self.p)
        dropped = round(self.p * _LEVELS)
        seed = int(torch.randint(2**62, ()))
        bits = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-inputs.numel() // 4), dtype=np.uint64)
        kept = bits.view(np.uint16)[: inputs.numel()] >= dropped
        scale = np.multiply(kept, np.float32(_LEVELS / (_LEVELS - dropped)), dtype=np.float32)
        return inputs * torch.from_numpy(scale).view_as(inputs)
