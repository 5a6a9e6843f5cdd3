"""Reads of tokens that stay in their tables: on a CPU, and with Numba installed, without a copy for each reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:
    from infnet.layers.read_kernel import MAX_GROUPS, num_lanes, read_backward, read_forward
    from infnet.layers.simd import LANES
except ImportError:
    _HAS_KERNEL = False
else:
    _HAS_KERNEL = True

__all__ = ["Rows", "TableTokens", "reads_tables"]


def reads_tables(tensor: Tensor) -> bool:
    """Whether :class:`TableTokens` works here."""
    return _HAS_KERNEL and tensor.device.type == "cpu" and tensor.dtype in {torch.float32, torch.float64}


@dataclass(frozen=True)
class Rows:
    """Which rows of a table each reader finds."""

    rows: Tensor
    """(n,) rows, reader by reader."""
    starts: Tensor
    """(B + 1,) where each reader's begin."""

    @classmethod
    def one_each(cls, rows: Tensor) -> Rows:
        """Reader b finds row ``rows[b]``."""
        return cls(rows, torch.arange(len(rows) + 1))

    @classmethod
    def of(cls, readers: Tensor, num_readers: int, rows: Tensor) -> Rows:
        """Entry i is row ``rows[i]`` for ``readers[i]``, ascending."""
        return cls(rows, F.pad(torch.bincount(readers, minlength=num_readers).cumsum(0), (1, 0)))


class TableTokens:
    """Tokens (G, m, d) in the rows of tables, the m of a row together; without any, a reader reads zeros.

    Args:
        groups: Tables, and the rows of each that request r finds; at most three.
    """

    def __init__(self, *groups: tuple[Tensor, Rows]) -> None:
        self.tables = [table for table, _ in groups]
        self._rows = [rows for _, rows in groups]
        self._num_readers = len(groups[0][1].starts) - 1

    def read(self, queries: Sequence[Tensor], gate: Tensor | None = None) -> list[Tensor]:
        """All queries (R, a, q, d), and gate (R, a', 1, d) if any, in one pass over each request's tokens."""
        width = queries[0].shape[-1]
        levels = [max(q.shape[1], 1 if gate is None else gate.shape[1]) for q in queries]
        flat = self._side_by_side(queries, levels)
        gates = flat[:, :0]
        if gate is not None:
            each = [gate.expand(-1, -1, q.shape[2], -1) for q in queries]
            gates = gate.squeeze(2) if max(levels) == 1 else self._side_by_side(each, levels)
        tables = self.tables
        if torch.is_autocast_enabled("cpu"):
            flat, gates, tables = flat.float(), gates.float(), [table.float() for table in tables]
        if width % LANES:
            padding = (0, -width % LANES)
            flat, gates, tables = F.pad(flat, padding), F.pad(gates, padding), [F.pad(t, padding) for t in tables]
        read, *again = _TableRead.apply(flat, gates, self._rows, *tables)
        self.tables = [table[..., :width] for table in again] if width % LANES else again
        parts = read[..., :width].split([a * q.shape[2] for a, q in zip(levels, queries, strict=True)], dim=1)
        return [part.unflatten(1, (a, -1)) for part, a in zip(parts, levels, strict=True)]

    def _side_by_side(self, rows: Sequence[Tensor], levels: Sequence[int]) -> Tensor:
        """(R, a, q, d) each -> (R, sum of a * q, d)."""
        each = [r.expand(self._num_readers, a, -1, -1).flatten(1, 2) for r, a in zip(rows, levels, strict=True)]
        return torch.cat(each, dim=1)


class _TableRead(Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, gates: Tensor, rows: Sequence[Rows], *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        queries, gates, tables = queries.contiguous(), gates.contiguous(), tuple(table.contiguous() for table in tables)
        out = torch.empty_like(queries)
        plain = torch.empty_like(queries) if gates.shape[1] else out
        mass = queries.new_empty(queries.shape[0], 2, num_lanes(queries.shape[1]))
        arrays = (t.detach().numpy() for t in (out, plain, mass))
        read_forward(queries.numpy(), gates.numpy(), _groups(tables, rows), *arrays)
        ctx.rows = rows
        ctx.save_for_backward(queries, gates, plain if gates.shape[1] else mass, mass, *tables)
        return (out, *(table.view_as(table) for table in tables))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, *d_later: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_out is None:
            return (None, None, None, *d_later)
        queries, gates, plain, mass, *tables = ctx.saved_tensors
        # What later reads left is theirs alone, so this read adds to it in place.
        d_tables = [torch.zeros_like(t) if g is None else g.contiguous() for t, g in zip(tables, d_later, strict=True)]
        d_queries, d_gates = torch.empty_like(queries), torch.empty_like(gates)
        sums = tuple(d_table.numpy() for d_table in d_tables)
        sums += tuple(np.empty((0, 0, queries.shape[2]), sums[0].dtype) for _ in range(MAX_GROUPS - len(sums)))
        arrays = (t.numpy() for t in (plain, mass, d_out.contiguous(), d_queries, d_gates))
        read_backward(queries.numpy(), gates.numpy(), _groups(tables, ctx.rows), *arrays, sums)
        return (d_queries, d_gates, None, *d_tables)


def _groups(tables: Sequence[Tensor], rows: Sequence[Rows]) -> tuple[tuple[NDArray[Any], ...], ...]:
    """As the kernel has them: always as many, so that it is compiled once."""
    groups = [(t.detach().numpy(), r.rows.numpy(), r.starts.numpy()) for t, r in zip(tables, rows, strict=True)]
    nothing = groups[0][0][:, :0].reshape(0, 0, tables[0].shape[2]), *groups[0][1:]
    return (*groups, *[nothing] * (MAX_GROUPS - len(groups)))
