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
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_PREFIX = 2
"""Bytes of a text key's length before it."""


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
        """Write text keys, given in order of length, then of bytes."""
        is_number = bool(keys.str.contains(r"^(0|[1-9]\d{0,17})$").all()) if len(keys) else True
        if is_number:
            np.save(path, keys.cast(pl.Int64).to_numpy())
            return
        encoded = [text.encode() for text in keys]
        np.save(path, np.array([len(text).to_bytes(_PREFIX, "big") + text for text in encoded]))

    def find(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """Index (n,) of every key; 0 for unknown ones.

        Raises:
            DataError: A key is neither text nor a number.
        """
        remembered = self._remembered
        try:
            missing = {key for key in keys if key not in remembered}
            if not missing:
                return np.fromiter((remembered[key] for key in keys), np.int64, len(keys))
        except TypeError:  # an unhashable one
            missing = set()
            bad = next(key for key in keys if not isinstance(key, str | int | float | np.integer | np.floating))
            raise DataError(f"key {bad!r} is of type {type(bad).__name__}, wanted text or an integer") from None
        listed = list(missing)
        found = dict(zip(listed, self._search([_text(key) for key in listed]), strict=True))
        both = found if len(remembered) + len(found) > _MOST_REMEMBERED else remembered
        result = np.fromiter((found[k] if k in found else remembered[k] for k in keys), np.int64, len(keys))
        if both is found:
            self._remembered = found  # others go on with the one they hold
        else:
            remembered.update(found)
        return result

    def key(self, index: int) -> str:
        """The key of an index from 1 on."""
        entry = self._keys[index - 1]
        return str(entry) if self._is_number else bytes(entry)[_PREFIX:].decode()

    def _search(self, texts: Sequence[str | None]) -> list[int]:
        if not len(self._keys):
            return [0] * len(texts)
        wanted = np.array([self._entry(text) for text in texts], dtype=self._keys.dtype)
        places = np.searchsorted(self._keys, wanted)
        hits = self._keys[np.minimum(places, len(self._keys) - 1)] == wanted
        return np.where(hits, places + 1, 0).tolist()

    def _entry(self, text: str | None) -> int | bytes:
        """What stands for a key in the file; something that stands there for nobody if it cannot be in it."""
        if self._is_number:
            is_plain = text is not None and text.isascii() and text.isdecimal() and len(text) <= 18
            return int(text) if is_plain and text == str(int(text)) else -1  # type: ignore[arg-type]
        encoded = (text or "").encode()
        if len(encoded) + _PREFIX > self._keys.dtype.itemsize:
            return b""
        return len(encoded).to_bytes(_PREFIX, "big") + encoded


def _text(key: Key) -> str | None:
    """The one spelling of a key, as preparation reads it; None for a missing one."""
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, str):
        whole = _WHOLE.match(key)
        return whole.group(1) if whole else key
    if isinstance(key, int | np.integer):
        return str(int(key))
    if isinstance(key, float | np.floating):
        return None if np.isnan(key) else _text(str(key))
    raise DataError(f"key {key!r} is of type {type(key).__name__}, wanted text or an integer")
