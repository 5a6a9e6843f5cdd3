"""Raw values of fields over the candidates of one request, ready to be compared."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.errors import DataError

__all__ = ["FieldValues", "Fields", "SingleValues", "field_values"]

_Raw: TypeAlias = Sequence[Any]
_Places: TypeAlias = NDArray[np.intp]
_COLLECTIONS = (list, tuple, set, frozenset)
_NOBODY = -2
"""A code that nobody has."""


class FieldValues(Protocol):
    """A field's values over n candidates; each different one is a number, its code."""

    def codes(self, candidate: int) -> Sequence[int]:
        """Of a candidate's values: none, one, or those of a list, each once."""

    def having(self, code: int) -> NDArray[np.bool_]:
        """Which candidates have a value, (n,)."""

    def agreement(self, candidate: int) -> NDArray[np.float64]:
        """How much everybody's values agree with a candidate's, (n,): shared values / values of either (Jaccard).

        Of single values 1 if they are equal; 0 where one of both has none.
        """


def field_values(field: str, values: _Raw, shown: _Places) -> FieldValues:
    """Make a field's values comparable.

    Args:
        field: Its name, for messages.
        values: (N,) raw ones: None, something to compare by equality such as a text or a number, or a list of these.
        shown: (n,) places of the candidates that matter; they are numbered in this order.

    Raises:
        DataError: A value cannot be compared, such as a mapping.
    """
    if any(issubclass(kind, _COLLECTIONS) for kind in set(map(type, values))):
        return _Several(field, values, shown)
    return SingleValues(field, values, shown)


class SingleValues:
    """At most one value per candidate. Arguments and errors as of :func:`field_values`."""

    def __init__(self, field: str, values: _Raw, shown: _Places) -> None:
        code_by_value: defaultdict[Any, int] = defaultdict(itertools.count().__next__, {None: -1})
        try:
            all_codes = np.fromiter(map(code_by_value.__getitem__, values), dtype=np.int32, count=len(values))
        except TypeError as error:
            raise _incomparable(field, values) from error
        self._codes = all_codes[shown]
        self._code_list: list[int] = self._codes.tolist()

    def codes(self, candidate: int) -> Sequence[int]:
        """Its value, if it has one."""
        code = self._code_list[candidate]
        return () if code < 0 else (code,)

    def having(self, code: int) -> NDArray[np.bool_]:
        """Which candidates have this value."""
        return self._codes == code

    def equal(self, candidate: int) -> NDArray[np.bool_]:
        """Whose value is a candidate's, (n,)."""
        code = self._code_list[candidate]
        return self._codes == (code if code >= 0 else _NOBODY)

    def agreement(self, candidate: int) -> NDArray[np.float64]:
        """1 where it is equal."""
        return self.equal(candidate).astype(np.float64)


class _Several:
    def __init__(self, field: str, values: _Raw, shown: _Places) -> None:
        code_by_value: defaultdict[Any, int] = defaultdict(itertools.count().__next__)
        self._of: list[list[int]] = []
        try:
            for place in shown.tolist():
                value = values[place]
                each = set(value) if isinstance(value, _COLLECTIONS) else {value}
                self._of.append([code_by_value[one] for one in each if one is not None])
        except TypeError as error:
            raise _incomparable(field, values) from error
        self._counts = np.array([len(codes) for codes in self._of], dtype=np.intp)
        self._have = np.zeros((len(code_by_value), len(self._of)), dtype=np.bool_)
        flat = np.fromiter(itertools.chain.from_iterable(self._of), dtype=np.intp, count=self._counts.sum())
        self._have[flat, np.repeat(np.arange(len(self._of)), self._counts)] = True

    def codes(self, candidate: int) -> Sequence[int]:
        return self._of[candidate]

    def having(self, code: int) -> NDArray[np.bool_]:
        return self._have[code]

    def agreement(self, candidate: int) -> NDArray[np.float64]:
        mine = self._of[candidate]
        if not mine:
            return np.zeros(len(self._of))
        shared = self._have[mine[0]].astype(np.float64)
        for code in mine[1:]:
            shared += self._have[code]
        return shared / (self._counts + len(mine) - shared)


class Fields:
    """Fields of the candidates that are shown, each made comparable once.

    Args:
        items: By field (N,) raw values; a field that is missing is None everywhere.
        num: N.
        shown: (n,) places of candidates; they are numbered in this order from here on.
    """

    def __init__(self, items: Mapping[str, _Raw], num: int, shown: _Places) -> None:
        self.shown = shown
        self._items, self._num = items, num
        self._known: dict[str, FieldValues] = {}

    def __getitem__(self, field: str) -> FieldValues:
        if field not in self._known:
            self._known[field] = field_values(field, self._raw(field), self.shown)
        return self._known[field]

    def truth(self, field: str) -> NDArray[np.bool_]:
        """Which candidates a field is true of, (n,)."""
        return np.fromiter(map(bool, self._raw(field)), dtype=np.bool_, count=self._num)[self.shown]

    def _raw(self, field: str) -> _Raw:
        values = self._items.get(field)
        return [None] * self._num if values is None else values


def _incomparable(field: str, values: _Raw) -> DataError:
    for value in values:
        try:
            hash(tuple(value) if isinstance(value, _COLLECTIONS) else value)
        except TypeError:
            break
    return DataError(f"field '{field}' of a candidate is {value!r}, wanted a text, a number or a list of such")
