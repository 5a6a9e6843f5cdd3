"""Formulas of a policy: arithmetic over named columns, parsed and checked once, without ``eval``."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from infnet.errors import SpecError, did_you_mean
from infnet.ranking.interval import Interval, IntervalError

__all__ = ["FUNCTIONS", "Formula"]

Column: TypeAlias = NDArray[np.float64]
_Evaluate: TypeAlias = Callable[[Mapping[str, Column]], Column]

_LONGEST, _DEEPEST = 1000, 40


@dataclass(frozen=True)
class _Function:
    """Something that can be called: how many arguments, what it computes, and what comes out of which intervals."""

    least: int
    most: int
    compute: Callable[..., Column]
    bound: Callable[..., Interval]


def _clip(values: Column, low: Column, high: Column) -> Column:
    return np.minimum(np.maximum(values, low), high)


def _where(is_true: Column, yes: Column, no: Column) -> Column:
    return np.where(is_true != 0, yes, no)


FUNCTIONS: Mapping[str, _Function] = {
    "abs": _Function(1, 1, np.abs, Interval.abs),
    "sqrt": _Function(1, 1, np.sqrt, Interval.sqrt),
    "exp": _Function(1, 1, np.exp, Interval.exp),
    "log": _Function(1, 1, np.log, Interval.log),
    "log1p": _Function(1, 1, np.log1p, Interval.log1p),
    "min": _Function(2, 2, np.minimum, Interval.min),
    "max": _Function(2, 2, np.maximum, Interval.max),
    "clip": _Function(3, 3, _clip, Interval.clip),
    "where": _Function(3, 3, _where, Interval.where),
}
"""What a formula may call. ``where(a > b, yes, no)`` chooses; a comparison is 1 where it holds, else 0."""

_BINARY: Mapping[type[ast.operator], tuple[str, Callable[..., Column], Callable[..., Interval]]] = {
    ast.Add: ("+", np.add, Interval.__add__),
    ast.Sub: ("-", np.subtract, Interval.__sub__),
    ast.Mult: ("*", np.multiply, Interval.__mul__),
    ast.Div: ("/", np.divide, Interval.__truediv__),
    ast.Pow: ("**", np.power, Interval.__pow__),
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[..., NDArray[np.bool_]]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


class Formula:
    """A formula such as ``bid * p_click`` or ``0.4 * p_long_view + 0.6 * log1p(watch_time)``.

    Args:
        text: Numbers, names, ``+ - * / **``, comparisons, parentheses and :data:`FUNCTIONS`.
        where: Whose it is, for messages.

    Attributes:
        text: As it was written.
        names: It reads.

    Raises:
        SpecError: It is anything else; says what was found and what may stand there.
    """

    def __init__(self, text: str, where: str = "formula") -> None:
        self.text, self._where = text, where
        if len(text) > _LONGEST:
            raise self._error(f"has {len(text)} characters, wanted at most {_LONGEST}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise self._error(f"is no formula ({reason}); wanted arithmetic such as 'bid * p_click'") from error
        names: set[str] = set()
        self._evaluate = self._compiled(self._tree, names, 0)
        self.names = frozenset(names)

    def __call__(self, columns: Mapping[str, Column]) -> Column:
        """The value for every row.

        Args:
            columns: By name, (N,) or () each; finite, within the intervals that :meth:`bound` was told.
        """
        with np.errstate(all="ignore"):
            return self._evaluate(columns)

    def bound(self, intervals: Mapping[str, Interval]) -> Interval:
        """What the formula can come to for columns within intervals.

        Raises:
            SpecError: It may divide by zero, overflow, or have no value at all; names the part and its interval.
        """
        return self._bound(self._tree, intervals)

    def _compiled(self, node: ast.expr, names: set[str], depth: int) -> _Evaluate:
        if depth > _DEEPEST:
            raise self._error(f"is nested deeper than {_DEEPEST}; split it into several objectives")
        if isinstance(node, ast.Constant):
            constant = np.array(self._number(node), dtype=np.float64)
            return lambda columns: constant
        if isinstance(node, ast.Name):
            name = node.id
            if name in FUNCTIONS:
                raise self._error(f"names the function '{name}' without calling it; write {name}(..)")
            names.add(name)
            return lambda columns: columns[name]
        parts = [self._compiled(part, names, depth + 1) for part in self._parts(node)]
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.UAdd):
                return parts[0]
            return lambda columns: -parts[0](columns)
        if isinstance(node, ast.Compare):
            compare = _COMPARISONS[type(node.ops[0])]
            return lambda columns: compare(parts[0](columns), parts[1](columns)).astype(np.float64)
        compute = _BINARY[type(node.op)][1] if isinstance(node, ast.BinOp) else FUNCTIONS[_called(node)].compute
        return lambda columns: compute(*(part(columns) for part in parts))

    def _parts(self, node: ast.expr) -> list[ast.expr]:
        """Operands of an operation that is allowed."""
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return [operand]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return [left, right]
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return [left, right]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if not any(
                isinstance(arg, ast.Starred) for arg in args
            ):
                function = FUNCTIONS.get(name)
                if function is None:
                    raise self._error(
                        f"calls '{name}', which is no function{did_you_mean(name, FUNCTIONS)} "
                        f"(there are {', '.join(FUNCTIONS)})"
                    )
                if not function.least <= len(args) <= function.most:
                    raise self._error(f"gives {name} {len(args)} arguments, wanted {function.least}")
                return args
        raise self._error(
            f"has '{_shown(node)}', which is no arithmetic; wanted numbers, names, + - * / **, one comparison at a "
            f"time, and {', '.join(FUNCTIONS)}"
        )

    def _number(self, node: ast.Constant) -> float:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self._error(f"has {node.value!r}, wanted a number")
        try:
            number = float(node.value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._error(f"has the number {_shown(node)[:20]}.., which is too large")
        return number

    def _bound(self, node: ast.expr, intervals: Mapping[str, Interval]) -> Interval:
        if isinstance(node, ast.Constant):
            return Interval.of(self._number(node))
        if isinstance(node, ast.Name):
            return intervals[node.id]
        parts = [self._bound(part, intervals) for part in self._parts(node)]
        if isinstance(node, ast.UnaryOp):
            return -parts[0] if isinstance(node.op, ast.USub) else parts[0]
        if isinstance(node, ast.Compare):
            return Interval(0.0, 1.0)
        bound = _BINARY[type(node.op)][2] if isinstance(node, ast.BinOp) else FUNCTIONS[_called(node)].bound
        try:
            return bound(*parts)
        except IntervalError as error:
            raise self._error(f"{error} in '{_shown(node)}'; {error.remedy}") from error

    def _error(self, what: str) -> SpecError:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}.."
        return SpecError(f"{self._where}: '{shown}' {what}")


def _called(node: ast.expr) -> str:
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return node.func.id


def _shown(node: ast.expr) -> str:
    try:
        text = ast.unparse(node)
    except (RecursionError, ValueError):
        return ".."
    return text if len(text) <= 60 else f"{text[:57]}.."
