"""Rows gathered by index, with gradients summed segment by segment instead of scattered.

The index is sorted once; each row's gradient is then a sum over consecutive entries, which is several times faster
on a CPU than a scatter-add, is deterministic, and serves every gather that uses the same index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["RowIndex", "segment_numbers", "segment_starts"]


class RowIndex:
    """Which rows of a table to read.

    Args:
        rows: (...) int32 or int64.
        num_rows: Rows of the tables to read from.
    """

    def __init__(self, rows: Tensor, num_rows: int) -> None:
        self.rows, self.num_rows = rows, num_rows
        self._segments: tuple[Tensor, Tensor] | None = None

    @property
    def segments(self) -> tuple[Tensor, Tensor]:
        """Flat entries ordered by the row they read (n,), and where each row's begin (num_rows + 1,)."""
        if self._segments is None:
            self._segments = _segments(self.rows.reshape(-1).to(torch.int64), self.num_rows)
        return self._segments

    def gather(self, table: Tensor) -> Tensor:
        """Table (num_rows, d) -> (..., d)."""
        out: Tensor = _Gather.apply(table, self, self.rows, None)
        return out

    def place(self, table: Tensor, places: Tensor, num_places: int) -> Tensor:
        """Put row k of a flat index at ``places[k]``: (num_places, d).

        Places that nobody is put at hold some row and pass no gradient.
        """
        rows = self.rows.new_zeros(num_places)
        rows[places] = self.rows
        out: Tensor = _Gather.apply(table, self, rows, places)
        return out

    def sums(self, table: Tensor, starts: Tensor) -> Tensor:
        """Sum the rows of a flat index bag by bag, which begin at ``starts`` (B + 1,): (B, d)."""
        out: Tensor = _Sum.apply(table, self, starts)
        return out


def segment_starts(counts: Tensor) -> Tensor:
    """(B + 1,) where segments of so many entries each begin, and where the last one ends."""
    return F.pad(counts.cumsum(0), (1, 0))


def segment_numbers(starts: Tensor, total: int) -> Tensor:
    """(n,) the number of each entry's segment; segments begin at ``starts`` (B + 1,), whose last is ``total``, n."""
    numbers = torch.arange(len(starts) - 1, device=starts.device)
    return numbers.repeat_interleave(starts.diff(), output_size=total)


def _segments(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    starts = segment_starts(torch.bincount(rows, minlength=num_rows))
    bits = max(len(rows) - 1, 1).bit_length()
    if rows.device.type == "cpu" and num_rows < 2 ** (62 - bits):
        # NumPy sorts plain integers with vector instructions; the position rides in the low bits.
        packed = np.sort(((rows << bits) | torch.arange(len(rows))).numpy())
        return torch.from_numpy(packed & ((1 << bits) - 1)), starts
    return rows.sort(stable=True).indices, starts


def _sum_segments(values: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    return F.embedding_bag(order, values, starts, mode="sum", include_last_offset=True)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: RowIndex, rows: Tensor, places: Tensor | None) -> Tensor:
        ctx.index, ctx.places = index, places
        out = table.new_empty(*rows.shape, table.shape[1])  # no view, so that it may be added to in place
        torch.index_select(table, 0, rows.reshape(-1), out=out.view(-1, table.shape[1]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        order, starts = ctx.index.segments
        positions = order if ctx.places is None else ctx.places[order]
        return _sum_segments(gradient.reshape(-1, gradient.shape[-1]), positions, starts), None, None, None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: RowIndex, starts: Tensor) -> Tensor:
        ctx.index, ctx.starts = index, starts
        return _sum_segments(table, index.rows.to(torch.int64), starts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, starts = ctx.index.segments
        bags = segment_numbers(ctx.starts, len(order))
        return _sum_segments(gradient.contiguous(), bags[order], starts), None, None
