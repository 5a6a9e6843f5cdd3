"""Vectors of 16 numbers in Numba functions: LLVM turns each operation into the widest instructions of the machine."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES",
    "add",
    "exp",
    "fma",
    "largest",
    "load",
    "maximum",
    "product_of",
    "scaled",
    "store",
    "subtract",
    "total",
    "transpose",
    "zeros",
]

LANES = 16


class _Vector(types.Type):
    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), LANES))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(builder.gep(data, [start]), vector.as_pointer())


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    kind = arguments[0].type
    bits = "f32" if isinstance(kind.element, ir.FloatType) else "f64"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * len(arguments)), f"llvm.{name}.v{LANES}{bits}"
    )
    return builder.call(function, arguments)


def _all(builder: Any, number: Any) -> Any:
    kind = ir.VectorType(number.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * LANES)


@intrinsic
def load(typing: Any, array: Any, start: Any) -> Any:
    """The 16 numbers of a flat array from ``start``."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return _Vector(array.dtype)(array, types.intp), lower


@intrinsic
def store(typing: Any, array: Any, start: Any, vector: Any) -> Any:
    """Write them there."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), lower


@intrinsic
def transpose(typing: Any, source: Any, start: Any, step: Any, target: Any, at: Any, target_step: Any) -> Any:
    """Write the 16 x 16 numbers of a flat array as columns of another; rows begin ``step`` apart."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_array, start, step, target_array, at, target_step = arguments
        align = source.dtype.bitwidth // 8

        def row(first: Any, apart: Any, i: int) -> Any:
            return builder.add(first, builder.mul(apart, ir.Constant(apart.type, i)))

        rows = [
            builder.load(_pointer(context, builder, source, source_array, row(start, step, i)), align=align)
            for i in range(LANES)
        ]
        half = LANES // 2
        lanes = ir.VectorType(ir.IntType(32), LANES)
        low = ir.Constant(lanes, [i // 2 + i % 2 * LANES for i in range(LANES)])
        high = ir.Constant(lanes, [half + i // 2 + i % 2 * LANES for i in range(LANES)])
        for _ in range(4):  # a perfect shuffle of all 256 numbers moves each index's bits round by one
            pairs = list(zip(rows[:half], rows[half:], strict=True))
            rows = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in (low, high)]
        for i, vector in enumerate(rows):
            builder.store(
                vector, _pointer(context, builder, target, target_array, row(at, target_step, i)), align=align
            )
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), lower


def product_of(num_rows: int) -> Any:
    """A function for so many rows of a matrix product, 16 columns wide, held in registers until they are complete.

    left, at, row_step, step: Entry (i, k) of the left matrix is at ``at + i * row_step + k * step``.
    inner: Columns of the left matrix, rows of the right one.
    right, start, width: Row k of the right matrix begins at ``start + k * width``.
    out, to: Row i of the product goes to ``to + i * width``.
    """

    @intrinsic
    def product(
        typing: Any,
        left: Any,
        at: Any,
        row_step: Any,
        step: Any,
        inner: Any,
        right: Any,
        start: Any,
        width: Any,
        out: Any,
        to: Any,
    ) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left_array, at, row_step, step, inner, right_array, start, width, out_array, to = arguments
            align = right.dtype.bitwidth // 8
            numbers = cgutils.create_struct_proxy(left)(context, builder, left_array).data
            nothing = _constant(context.get_value_type(_Vector(right.dtype)), 0)
            sums = [cgutils.alloca_once_value(builder, nothing) for _ in range(num_rows)]
            for each in sums:
                builder.store(nothing, each)
            with cgutils.for_range(builder, inner) as loop:
                row = builder.add(start, builder.mul(loop.index, width))
                vector = builder.load(_pointer(context, builder, right, right_array, row), align=align)
                entry = builder.add(at, builder.mul(loop.index, step))
                for each in sums:
                    number = _all(builder, builder.load(builder.gep(numbers, [entry])))
                    builder.store(_call(builder, "fma", number, vector, builder.load(each)), each)
                    entry = builder.add(entry, row_step)
            for each in sums:
                builder.store(builder.load(each), _pointer(context, builder, out, out_array, to), align=align)
                to = builder.add(to, width)
            return context.get_dummy_value()

        n = types.intp
        return types.void(left, n, n, n, n, right, n, n, out, n), lower

    return product


@intrinsic
def zeros(typing: Any, array: Any) -> Any:
    """16 zeros of the array's type."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _constant(context.get_value_type(signature.return_type), 0)

    return _Vector(array.dtype)(array), lower


@intrinsic
def add(typing: Any, left: Any, right: Any) -> Any:
    """The sum in every lane."""
    return left(left, right), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def fma(typing: Any, number: Any, vector: Any, added: Any) -> Any:
    """``number * vector + added``, rounded once; the number may be a vector too."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left = arguments[0] if isinstance(number, _Vector) else _all(builder, arguments[0])
        return _call(builder, "fma", left, *arguments[1:])

    return vector(number, vector, added), lower


@intrinsic
def scaled(typing: Any, number: Any, vector: Any) -> Any:
    """``number * vector``; the number may be a vector too."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left = arguments[0] if isinstance(number, _Vector) else _all(builder, arguments[0])
        return builder.fmul(left, arguments[1])

    return vector(number if isinstance(number, _Vector) else vector.dtype, vector), lower


@intrinsic
def subtract(typing: Any, vector: Any, number: Any) -> Any:
    """``vector - number``."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fsub(arguments[0], _all(builder, arguments[1]))

    return vector(vector, vector.dtype), lower


@intrinsic
def maximum(typing: Any, left: Any, right: Any) -> Any:
    """The larger one in every lane."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return left(left, right), lower


def _folded(builder: Any, vector: Any, combine: Any) -> Any:
    half = LANES // 2
    while half:
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(i + half) % LANES for i in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, vector, lanes))
        half //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of the lanes."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _folded(builder, arguments[0], builder.fadd)

    return vector.dtype(vector), lower


@intrinsic
def largest(typing: Any, vector: Any) -> Any:
    """Largest of the lanes."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _folded(builder, arguments[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return vector.dtype(vector), lower


@intrinsic
def exp(typing: Any, vector: Any) -> Any:
    """e to the vector, for numbers <= 0, to the last digit or two; 0 where it is below 1e-37 (1e-307).

    x = n ln 2 + r with |r| <= ln 2 / 2: a Taylor polynomial in r, and n into the exponent's bits.
    """
    single = vector.dtype == types.float32
    degree, mantissa, bias, lowest = (7, 23, 127, -85.0) if single else (13, 52, 1023, -708.0)
    high = 0.693359375 if single else 0.693147180369123816490
    low = math.log(2) - high if single else 1.90821492927058770002e-10

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        kind = x.type
        is_tiny = builder.fcmp_ordered("<", x, _constant(kind, lowest))
        n = _call(builder, "rint", builder.fmul(x, _constant(kind, 1 / math.log(2))))
        r = _call(builder, "fma", n, _constant(kind, -high), x)
        r = _call(builder, "fma", n, _constant(kind, -low), r)
        out = _constant(kind, 1 / math.factorial(degree))
        for power in reversed(range(degree)):
            out = _call(builder, "fma", out, r, _constant(kind, 1 / math.factorial(power)))
        whole = ir.VectorType(ir.IntType(32 if single else 64), LANES)
        bits = builder.add(builder.fptosi(n, whole), _constant(whole, bias))
        power_of_two = builder.bitcast(builder.shl(bits, _constant(whole, mantissa)), kind)
        return builder.select(is_tiny, _constant(kind, 0), builder.fmul(out, power_of_two))

    return vector(vector), lower
