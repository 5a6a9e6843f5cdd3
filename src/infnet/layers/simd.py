"""Vectors of 16 numbers in Numba functions: LLVM turns each operation into the widest instructions of the machine.

Memory is named by pointers (:func:`begin`, :func:`past`), which unlike arrays are not counted with every mention, and
rows that stand anywhere by a list of their addresses.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES",
    "add",
    "address",
    "begin",
    "columns",
    "exp",
    "fma",
    "load",
    "maximum",
    "multiply",
    "past",
    "prefetch",
    "product_of",
    "reciprocal",
    "scaled",
    "store",
    "subtract",
    "zeros",
]

LANES = 16
_INT = ir.IntType(64)


class _Vector(types.Type):
    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: _Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), LANES))


def _vector_at(builder: Any, pointer: Any) -> Any:
    """Pointer to a vector whose first number ``pointer`` points to."""
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, LANES).as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(_vector_at(builder, pointer), align=_bytes(pointer))


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, _vector_at(builder, pointer), align=_bytes(pointer))


def _bytes(pointer: Any) -> int:
    return 4 if isinstance(pointer.type.pointee, ir.FloatType) else 8


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
def begin(typing: Any, array: Any) -> Any:
    """Pointer to the first number of a contiguous array."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return cgutils.create_struct_proxy(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), lower


@intrinsic
def past(typing: Any, pointer: Any, count: Any) -> Any:
    """The pointer ``count`` numbers on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.intp), lower


@intrinsic
def address(typing: Any, pointer: Any) -> Any:
    """Where the pointer points, as an integer to keep in an array."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], _INT)

    return types.intp(pointer), lower


@intrinsic
def load(typing: Any, pointer: Any, start: Any) -> Any:
    """The 16 numbers from ``start``."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, builder.gep(arguments[0], [arguments[1]]))

    return _Vector(pointer.dtype)(pointer, types.intp), lower


@intrinsic
def store(typing: Any, pointer: Any, start: Any, vector: Any) -> Any:
    """Write them there."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _store(builder, arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, vector), lower


@intrinsic
def prefetch(typing: Any, where: Any) -> Any:
    """Begin to bring the memory at an address near."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0i8"
        )
        builder.call(function, [builder.inttoptr(arguments[0], byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), lower


@intrinsic
def columns(typing: Any, addresses: Any, start: Any, target: Any) -> Any:
    """Numbers ``start`` to ``start + 16`` of the 16 rows at the addresses, as 16 columns one after the other."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        addresses, start, target = arguments
        rows = [_load(builder, _row(builder, addresses, _INT(i), start, target.type)) for i in range(LANES)]
        half = LANES // 2
        lanes = ir.VectorType(ir.IntType(32), LANES)
        low = ir.Constant(lanes, [i // 2 + i % 2 * LANES for i in range(LANES)])
        high = ir.Constant(lanes, [half + i // 2 + i % 2 * LANES for i in range(LANES)])
        for _ in range(4):  # a perfect shuffle of all 256 numbers moves each index's bits round by one
            pairs = list(zip(rows[:half], rows[half:], strict=True))
            rows = [builder.shuffle_vector(a, b, part) for a, b in pairs for part in (low, high)]
        for i, vector in enumerate(rows):
            _store(builder, vector, builder.gep(target, [_INT(i * LANES)]))
        return context.get_dummy_value()

    return types.void(addresses, types.intp, target), lower


def _row(builder: Any, addresses: Any, index: Any, start: Any, kind: Any) -> Any:
    """Pointer to number ``start`` of the row at the address with that index."""
    row = builder.inttoptr(builder.load(builder.gep(addresses, [index])), kind)
    return builder.gep(row, [start])


_CHAINS = 8
"""Sums that must be under way for an adder never to wait."""

_Place = Literal["apart", "anywhere"]


def product_of(
    num_rows: int, *, left_rows: _Place = "apart", right_rows: _Place = "apart", out_rows: _Place = "apart"
) -> Any:
    """A function for so many rows of a matrix product, 16 columns wide, held in registers until they are complete.

    Rows stand ``step`` numbers ``apart``, or ``anywhere``: then the pointer is to their addresses, and ``step`` is the
    number of a row to begin with.

    Arguments of the function:
        left, left_step, next: Rows of the left matrix; entries of a row stand ``next`` apart.
        inner: Columns of the left matrix, rows of the right one.
        right, right_step: Rows of the right matrix, 16 numbers of each.
        out, out_step: Rows of the product; ``anywhere``, it is added to what is there.
    """
    num_chains = max(1, _CHAINS // num_rows)

    @intrinsic
    def product(
        typing: Any,
        left: Any,
        left_step: Any,
        next: Any,
        inner: Any,
        right: Any,
        right_step: Any,
        out: Any,
        out_step: Any,
    ) -> Any:
        numbers = right if right_rows == "apart" else out if out_rows == "apart" else left

        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, left_step, next, inner, right, right_step, out, out_step = arguments
            kind = context.get_value_type(numbers)
            nothing = _constant(ir.VectorType(kind.pointee, LANES), 0)

            def row(place: _Place, rows: Any, index: Any, step: Any) -> Any:
                if place == "apart":
                    return builder.gep(rows, [builder.mul(index, step)])
                return _row(builder, rows, index, step, kind)

            lefts = [row(left_rows, left, _INT(i), left_step) for i in range(num_rows)]
            sums = [[cgutils.alloca_once(builder, nothing.type) for _ in range(num_chains)] for _ in range(num_rows)]
            for each in sums:
                for chain in each:
                    builder.store(nothing, chain)

            def accumulate(k: Any, chain: int) -> None:
                vector = _load(builder, row(right_rows, right, k, right_step))
                entry = builder.mul(k, next)
                for each, numbers in zip(sums, lefts, strict=True):
                    number = _all(builder, builder.load(builder.gep(numbers, [entry])))
                    builder.store(_call(builder, "fma", number, vector, builder.load(each[chain])), each[chain])

            whole = builder.sdiv(inner, _INT(num_chains))
            with cgutils.for_range(builder, whole) as loop:
                for chain in range(num_chains):
                    accumulate(builder.add(builder.mul(loop.index, _INT(num_chains)), _INT(chain)), chain)
            if num_chains > 1:
                with cgutils.for_range(builder, inner, start=builder.mul(whole, _INT(num_chains))) as loop:
                    accumulate(loop.index, 0)
            for i, each in enumerate(sums):
                found = [builder.load(chain) for chain in each]
                while len(found) > 1:
                    found = [builder.fadd(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
                target = row(out_rows, out, _INT(i), out_step)
                if out_rows == "anywhere":
                    found[0] = builder.fadd(_load(builder, target), found[0])
                _store(builder, found[0], target)
            return context.get_dummy_value()

        n = types.intp
        return types.void(left, n, n, n, right, n, out, n), lower

    return product


@intrinsic
def zeros(typing: Any, pointer: Any) -> Any:
    """16 zeros of the type pointed to."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _constant(context.get_value_type(signature.return_type), 0)

    return _Vector(pointer.dtype)(pointer), lower


@intrinsic
def add(typing: Any, left: Any, right: Any) -> Any:
    """The sum in every lane."""
    return left(left, right), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def fma(typing: Any, left: Any, right: Any, added: Any) -> Any:
    """``left * right + added``, rounded once."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "fma", *arguments)

    return left(left, right, added), lower


@intrinsic
def scaled(typing: Any, number: Any, vector: Any) -> Any:
    """``number * vector``."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(_all(builder, arguments[0]), arguments[1])

    return vector(vector.dtype, vector), lower


@intrinsic
def subtract(typing: Any, left: Any, right: Any) -> Any:
    """The difference in every lane."""
    return left(left, right), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def multiply(typing: Any, left: Any, right: Any) -> Any:
    """The product in every lane."""
    return left(left, right), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def reciprocal(typing: Any, vector: Any) -> Any:
    """One over every lane."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fdiv(_constant(arguments[0].type, 1), arguments[0])

    return vector(vector), lower


@intrinsic
def maximum(typing: Any, left: Any, right: Any) -> Any:
    """The larger one in every lane."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return left(left, right), lower


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
