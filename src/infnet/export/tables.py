"""Tables of vectors on disk, read row by row: float32, bfloat16, or int8 with a scale per vector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from infnet.errors import ArtifactError

__all__ = ["Precision", "Table", "open_array"]

Precision: TypeAlias = Literal["float32", "bf16", "int8"]

_STORED: dict[Precision, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "bf16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
}


class Table:
    """(n, k, d): k vectors of width d for each of n rows, memory-mapped."""

    def __init__(self, values: NDArray[np.generic], scales: NDArray[np.float32] | None) -> None:
        self._values, self._scales = values, scales

    @classmethod
    def open(cls, path: Path, precision: Precision) -> Table:
        """Open ``path``.npy, and ``path``.scales.npy beside it if it is int8.

        Raises:
            ArtifactError: A file is missing or holds something else.
        """
        values = open_array(path.with_name(f"{path.name}.npy"))
        if values.dtype != _STORED[precision] or values.ndim != 3:
            raise ArtifactError(f"{path}.npy: holds {values.dtype} {values.shape}, wanted {precision} (n, k, d)")
        if precision != "int8":
            return cls(values, None)
        scales = open_array(path.with_name(f"{path.name}.scales.npy"))
        if scales.dtype != np.float32 or scales.shape != values.shape[:2]:
            raise ArtifactError(f"{path}.scales.npy: holds {scales.dtype} {scales.shape}, wanted {values.shape[:2]}")
        return cls(values, scales.astype(np.float32, copy=False))

    @staticmethod
    def write(
        path: Path, blocks: Iterable[Tensor], shape: tuple[int, int, int], precision: Precision = "float32"
    ) -> None:
        """Write blocks of rows (b, k, d), n rows in all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = open_memmap(path.with_name(f"{path.name}.npy"), "w+", _STORED[precision], shape)
        scales = None
        if precision == "int8":
            scales = open_memmap(path.with_name(f"{path.name}.scales.npy"), "w+", np.dtype("<f4"), shape[:2])
        at = 0
        for block in blocks:
            rows = slice(at, at + len(block))
            at = rows.stop
            if precision == "int8" and scales is not None:
                scale = block.abs().amax(dim=-1).clamp(min=1e-30) / 127
                values[rows] = (block / scale[..., None]).round().to(torch.int8).numpy()
                scales[rows] = scale.numpy()
            elif precision == "bf16":
                values[rows] = block.to(torch.bfloat16).view(torch.uint16).numpy()
            else:
                values[rows] = block.numpy()
        values.flush()
        if scales is not None:
            scales.flush()

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, k, d)."""
        return self._values.shape

    @property
    def num_bytes(self) -> int:
        """On disk, and in memory once every row has been read."""
        return self._values.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def take(self, rows: NDArray[np.integer], vector: int | None = None) -> NDArray[np.float32]:
        """Rows (...) -> (..., k, d), or one vector of each, (..., d)."""
        values, scales = self._values, self._scales
        if vector is not None:
            rows = rows * np.int64(values.shape[1]) + vector
            values = values.reshape(-1, values.shape[2])
            scales = None if scales is None else scales.reshape(-1)
        taken: NDArray[Any] = values.take(rows, axis=0, mode="clip")
        # PyTorch converts in half the time that NumPy takes.
        if scales is not None:
            scale = torch.from_numpy(scales.take(rows, axis=0, mode="clip"))
            return torch.from_numpy(taken).float().mul_(scale[..., None]).numpy()
        if taken.dtype == np.uint16:
            return torch.from_numpy(taken).view(torch.bfloat16).float().numpy()
        return taken


def open_array(path: Path) -> NDArray[np.generic]:
    """A ``.npy`` file by memory map; nothing in it is executed.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); export the run again") from error
    return array.view(np.ndarray)  # indexing np.memmap itself goes through a slow Python subclass
