"""Which index a user or an item has, looked up in a sorted file that is never read as a whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from infnet.errors import DataError

__all__ = ["Key", "KeyIndex"]

Key: TypeAlias = str | int
"""As the caller has it: 123 and "123" agree."""

_MOST_REMEMBERED = 1_000_000
_WHOLE = re.compile(r"(-?\d+)\.0+")
_PREFIX = 2
"""Bytes of a text key's length before it."""
_LONGEST = 2 ** (8 * _PREFIX) - 1


class KeyIndex:
    """Keys in order of length, then of bytes: key i of the file is index i + 1, and 0 stands for unknown ones.

    Keys that are plain numbers are kept as int64, others as bytes with their length before them; either way their
    order is that of the file, so that a binary search needs nothing but the file itself. What was found is remembered.
    """

    def __init__(self, keys: NDArray[np.int64] | NDArray[np.bytes_]) -> None:
        self._keys = keys
        self._is_number = keys.dtype.kind == "i"
        self._remembered: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @staticmethod
    def write(path: Path, keys: pl.Series) -> None:
        """Write text keys, given in order of length, then of bytes.

        Raises:
            DataError: A key is longer than 65,535 bytes.
        """
        is_number = bool(keys.str.contains(r"^(0|[1-9][0-9]{0,17})$").all()) if len(keys) else True
        if is_number:
            np.save(path, keys.cast(pl.Int64).to_numpy())
            return
        encoded = [text.encode() for text in keys]
        if len(encoded[-1]) > _LONGEST:
            raise DataError(f"key '{keys[-1][:20]}..' has {len(encoded[-1])} bytes, wanted at most {_LONGEST}")
        np.save(path, np.array([len(text).to_bytes(_PREFIX, "big") + text for text in encoded]))

    def find(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """Index (n,) of every key; 0 for unknown ones.

        Raises:
            DataError: A key is neither text nor a number.
        """
        if not {*map(type, keys)} <= {str, int}:  # True and 1.0 would be found where 1 is remembered
            keys = [_text(key) for key in keys]
        remembered = self._remembered
        known = [*map(remembered.get, keys)]
        if None not in known:
            return np.array(known, dtype=np.int64)
        missing = [*{key for key, index in zip(keys, known, strict=True) if index is None}]
        found = dict(zip(missing, self._search([_text(key) for key in missing]), strict=True))
        if len(remembered) + len(found) > _MOST_REMEMBERED:
            self._remembered = found  # others go on with the one they hold
        else:
            remembered.update(found)
        indices = (found[key] if index is None else index for key, index in zip(keys, known, strict=True))
        return np.fromiter(indices, np.int64, len(known))

    def key(self, index: int) -> str:
        """The key of an index from 1 on."""
        return self.keys(np.array([index]))[0]

    def keys(self, indices: NDArray[np.integer]) -> list[str]:
        """The keys of indices (n,) from 1 on."""
        entries = self._keys[indices - 1].tolist()
        return [*map(str if self._is_number else _decoded, entries)]

    def texts(self) -> pl.Series:
        """All keys (len,), in their order."""
        if self._is_number:
            return pl.Series(self._keys, dtype=pl.Int64).cast(pl.String)
        return pl.Series([self.key(index + 1) for index in range(len(self))], dtype=pl.String)

    def _search(self, texts: Sequence[str]) -> list[int]:
        if not len(self._keys):
            return [0] * len(texts)
        wanted = np.array([self._entry(text) for text in texts], dtype=self._keys.dtype)
        places = np.searchsorted(self._keys, wanted)
        hits = self._keys[np.minimum(places, len(self._keys) - 1)] == wanted
        return np.where(hits, places + 1, 0).tolist()

    def _entry(self, text: str) -> int | bytes:
        """What stands for a key in the file; something that stands there for nobody if it cannot be in it."""
        if self._is_number:
            is_plain = text.isascii() and text.isdecimal() and len(text) <= 18
            return int(text) if is_plain and text == str(int(text)) else -1
        encoded = text.encode(errors="surrogatepass")
        if len(encoded) + _PREFIX > self._keys.dtype.itemsize:
            return b""
        return len(encoded).to_bytes(_PREFIX, "big") + encoded


def _decoded(entry: bytes) -> str:
    """The key of an entry, at whose end NumPy has dropped zeros."""
    length = int.from_bytes(entry[:_PREFIX].ljust(_PREFIX, b"\0"), "big")
    return entry[_PREFIX:].ljust(length, b"\0").decode()


def _text(key: Key) -> str:
    """The one spelling of a key, as preparation reads it; empty for a missing one."""
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, str):
        whole = _WHOLE.fullmatch(key)
        return whole.group(1) if whole else key
    if isinstance(key, int | np.integer):
        return str(int(key))
    if isinstance(key, float | np.floating):
        return "" if np.isnan(key) else _text(str(key))
    raise DataError(f"key {key!r} is of type {type(key).__name__}, wanted text or an integer")
