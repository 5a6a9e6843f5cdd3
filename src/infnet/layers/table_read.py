"""Reads of tokens that stay in their tables: on a CPU, and with Numba installed, without a copy for each reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
    from infnet.layers.read_kernel import MAX_GROUPS, MAX_KINDS, num_lanes, read_backward, read_forward
    from infnet.layers.simd import LANES
except ImportError:
    _HAS_KERNEL = False
else:
    _HAS_KERNEL = True

__all__ = ["Rows", "TableTokens", "plain_reads", "reads_tables"]

_PLAIN: ContextVar[bool] = ContextVar("plain_reads", default=False)


def reads_tables(tensor: Tensor) -> bool:
    """Whether :class:`TableTokens` works here and is wanted."""
    works = _HAS_KERNEL and tensor.device.type == "cpu" and tensor.dtype in {torch.float32, torch.float64}
    return works and not _PLAIN.get()


@contextmanager
def plain_reads() -> Iterator[None]:
    """Read by PyTorch's own products within, which can be counted and recorded as the kernel's cannot."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


@dataclass(frozen=True)
class Rows:
    """Which rows of a table each reader finds."""

    rows: Tensor
    """(n,) int64 rows, reader by reader."""
    starts: Tensor
    """(B + 1,) where each reader's begin."""

    @classmethod
    def one_each(cls, rows: Tensor) -> Rows:
        """Reader b finds row ``rows[b]``."""
        return cls(rows, torch.arange(len(rows) + 1))


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
        rows, tables = [self._rows_of(q, a) for q, a in zip(queries, levels, strict=True)], self.tables
        gates = rows[0].new_empty(self._num_readers, 0, width)
        if gate is not None:
            each = [gate.expand(-1, -1, q.shape[2], -1) for q in queries]
            parts = [self._rows_of(g, a) for g, a in zip(each, levels, strict=True)]
            gates = gate.squeeze(2) if max(levels) == 1 else torch.cat(parts, dim=1)
        if torch.is_autocast_enabled("cpu"):
            rows, gates, tables = [r.float() for r in rows], gates.float(), [t.float() for t in tables]
        if width % LANES:
            gates, *padded = (F.pad(t, (0, -width % LANES)) for t in (gates, *rows, *tables))
            rows, tables = padded[: len(rows)], padded[len(rows) :]
        found = _TableRead.apply(self._rows, gates, len(rows), *rows, *tables)
        read, self.tables = found[: len(rows)], [*found[len(rows) :]]
        if width % LANES:
            read, self.tables = [r[..., :width] for r in read], [t[..., :width] for t in self.tables]
        return [part.unflatten(1, (a, -1)) for part, a in zip(read, levels, strict=True)]

    def _rows_of(self, tensor: Tensor, level: int) -> Tensor:
        """(R, a, q, d) -> (R, level * q, d)."""
        return tensor.expand(self._num_readers, level, -1, -1).flatten(1, 2)


class _TableRead(Function):
    @staticmethod
    def forward(
        ctx: Any, table_rows: Sequence[Rows], gates: Tensor, num_kinds: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        gates, tensors = gates.contiguous(), tuple(t.contiguous() for t in tensors)
        queries, tables = tensors[:num_kinds], tensors[num_kinds:]
        num_readers, width = queries[0].shape[0], queries[0].shape[2]
        num_queries = sum(q.shape[1] for q in queries)
        out = [torch.empty_like(q) for q in queries]
        plain = gates.new_empty(num_readers, num_queries if gates.shape[1] else 0, width)
        mass = gates.new_empty(num_readers, 2, num_lanes(num_queries))
        groups = _groups(tables, table_rows)
        read_forward(_kinds(queries), gates.detach().numpy(), groups, _kinds(out), plain.numpy(), mass.numpy())
        ctx.table_rows, ctx.num_kinds = table_rows, num_kinds
        ctx.save_for_backward(gates, plain, mass, *tensors)
        return (*out, *(table.view_as(table) for table in tables))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gates, plain, mass, *tensors = ctx.saved_tensors
        queries, tables = tensors[: ctx.num_kinds], tensors[ctx.num_kinds :]
        d_out, d_later = gradients[: ctx.num_kinds], gradients[ctx.num_kinds :]
        if all(d is None for d in d_out):
            return (None,) * (3 + ctx.num_kinds) + d_later
        d_read = [torch.zeros_like(q) if d is None else d.contiguous() for q, d in zip(queries, d_out, strict=True)]
        # What later reads left is theirs alone, so this read adds to it in place.
        d_tables = [torch.zeros_like(t) if g is None else g.contiguous() for t, g in zip(tables, d_later, strict=True)]
        d_queries, d_gates = [torch.empty_like(q) for q in queries], torch.empty_like(gates)
        sums = _filled([d_table.numpy() for d_table in d_tables], MAX_GROUPS)
        read_backward(
            _kinds(queries),
            gates.numpy(),
            _groups(tables, ctx.table_rows),
            plain.numpy(),
            mass.numpy(),
            _kinds(d_read),
            _kinds(d_queries),
            d_gates.numpy(),
            sums,
        )
        return (None, d_gates, None, *d_queries, *d_tables)


def _groups(tables: Sequence[Tensor], rows: Sequence[Rows]) -> tuple[tuple[NDArray[Any], ...], ...]:
    each = zip(_filled([t.detach().numpy() for t in tables], MAX_GROUPS), _filled(rows, MAX_GROUPS), strict=True)
    return tuple((table, r.rows.numpy(), r.starts.numpy()) for table, r in each)


def _kinds(tensors: Sequence[Tensor]) -> tuple[NDArray[Any], ...]:
    return _filled([t.detach().numpy() for t in tensors], MAX_KINDS)


def _filled(arrays: Sequence[Any], count: int) -> tuple[Any, ...]:
    """The kernel always has as many, so that it is compiled once: those that are missing have no tokens or rows."""
    first = arrays[0]
    nothing = first[:, :0] if isinstance(first, np.ndarray) else first
    return (*arrays, *[nothing] * (count - len(arrays)))
