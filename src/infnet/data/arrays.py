"""Writing ``.npy`` files larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ArrayWriter", "chunks", "filled_array"]

_CHUNK = 1_000_000


class ArrayWriter:
    """Appends blocks of rows to a ``.npy`` file, whose header learns the number of rows when the file is closed."""

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        """Begin a file of shape (n, width), or (n,) if width is None; of width 0, no file is written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.num_rows = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shape: tuple[int, ...] = () if width is None else (width,)
        self._file = None if width == 0 else path.open("wb")
        self._header_size = self._write_header()

    def append(self, rows: NDArray[np.generic]) -> None:
        """Add (k, width) or (k,) rows."""
        if rows.shape[1:] != self._shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} do not fit a file of {self._shape}")
        self.num_rows += len(rows)
        if self._file is not None:
            self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)

    def close(self) -> None:
        """Finish the file."""
        if self._file is None:
            return
        try:
            self._file.seek(0)
            if self._write_header() != self._header_size:  # NumPy leaves room for any number of rows
                raise AssertionError("the header of an .npy file changed its size")
        finally:
            self._file.close()

    def _write_header(self) -> int:
        if self._file is None:
            return 0
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.num_rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()


@contextmanager
def filled_array(path: Path, row: NDArray[np.generic], num_rows: int) -> Iterator[NDArray[np.generic]]:
    """A new ``.npy`` file (num_rows, len(row)) of equal rows, mapped for writing; nothing is written if row is empty.

    The rows are really written first, so that a full disk is an ``OSError`` here and not a crash of the process later.
    """
    if not len(row):
        yield np.zeros((num_rows, 0), dtype=row.dtype)
        return
    with ArrayWriter(path, row.dtype, len(row)) as writer:
        for part in chunks(num_rows):
            writer.append(np.broadcast_to(row, (part.stop - part.start, len(row))))
    mapped: np.memmap[tuple[int, ...], np.dtype[np.generic]] = np.lib.format.open_memmap(path, mode="r+")
    yield mapped
    mapped.flush()


def chunks(num_rows: int, size: int = _CHUNK) -> Iterator[slice]:
    """Slices that together cover ``num_rows``."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
