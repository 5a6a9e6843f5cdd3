"""Intervals of numbers: what a formula can come to, found out before it is ever computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Interval", "IntervalError"]

_LARGEST = 1e150
"""Beyond it counts as overflow: the product of two such numbers is still finite."""


class IntervalError(ValueError):
    """An operation has no finite value for some numbers of its operands' intervals.

    Attributes:
        remedy: What to write instead.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, both finite. Operations give an interval that holds every result, and
    raise :class:`IntervalError` where a result may not be finite."""

    low: float
    high: float

    @classmethod
    def of(cls, number: float) -> Interval:
        """A number alone."""
        return cls(number, number)

    def __add__(self, other: Interval) -> Interval:
        return _checked(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _checked(min(corners), max(corners))

    def __truediv__(self, other: Interval) -> Interval:
        if other.low <= 0.0 <= other.high:
            raise IntervalError(
                f"may divide by zero (the divisor is between {other.low:g} and {other.high:g})",
                "keep it away from zero, as in a / max(b, 0.001)",
            )
        return self * _checked(_reciprocal(other.high), _reciprocal(other.low))

    def __pow__(self, other: Interval) -> Interval:
        if other.low == other.high and other.low == int(other.low) and other.low >= 0:
            corners = [_power(self.low, other.low), _power(self.high, other.low)]
            crosses = self.low < 0.0 < self.high
            return _checked(min([*corners, 0.0] if crosses else corners), max(corners))
        if self.low <= 0.0:
            raise IntervalError(
                f"may take a power of what is not positive (between {self.low:g} and {self.high:g})",
                "keep it positive, as in max(a, 0.001) ** b",
            )
        corners = [_power(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return _checked(min(corners), max(corners))

    def abs(self) -> Interval:
        """Of the absolute value."""
        low = 0.0 if self.low <= 0.0 <= self.high else min(abs(self.low), abs(self.high))
        return Interval(low, max(abs(self.low), abs(self.high)))

    def sqrt(self) -> Interval:
        """Of the square root."""
        return self._rising(math.sqrt, 0.0, "sqrt", or_equal=True)

    def exp(self) -> Interval:
        """Of the exponential."""
        return _checked(_exp(self.low), _exp(self.high))

    def log(self) -> Interval:
        """Of the natural logarithm."""
        return self._rising(math.log, 0.0, "log", or_equal=False)

    def log1p(self) -> Interval:
        """Of log(1 + x)."""
        return self._rising(math.log1p, -1.0, "log1p", or_equal=False)

    def min(self, other: Interval) -> Interval:
        """Of the smaller one."""
        return Interval(min(self.low, other.low), min(self.high, other.high))

    def max(self, other: Interval) -> Interval:
        """Of the larger one."""
        return Interval(max(self.low, other.low), max(self.high, other.high))

    def clip(self, low: Interval, high: Interval) -> Interval:
        """Of the number, moved to the nearest between two others."""
        return self.max(low).min(high)

    def where(self, yes: Interval, no: Interval) -> Interval:
        """Of one or the other."""
        return Interval(min(yes.low, no.low), max(yes.high, no.high))

    def _rising(self, function: Callable[[float], float], least: float, name: str, *, or_equal: bool) -> Interval:
        if self.low < least or (self.low == least and not or_equal):
            wanted = f"at least {least:g}" if or_equal else f"more than {least:g}"
            raise IntervalError(
                f"may take {name} of {self.low:g} (wanted {wanted})",
                f"keep it there, as in {name}(max(a, {least if or_equal else least + 0.001:g}))",
            )
        return Interval(function(self.low), function(self.high))


def _checked(low: float, high: float) -> Interval:
    if not (-_LARGEST <= low <= high <= _LARGEST):
        raise IntervalError(
            f"may overflow (between {low:g} and {high:g})",
            "declare narrower ranges of its inputs, or clip(a, low, high)",
        )
    return Interval(low, high)


def _reciprocal(number: float) -> float:
    """Also of numbers so small that it overflows."""
    return 1.0 / number if abs(number) > 1 / _LARGEST else math.copysign(math.inf, number)


def _power(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf if base > 0 or exponent % 2 == 0 else -math.inf


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
