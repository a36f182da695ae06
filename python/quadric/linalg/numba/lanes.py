"""Eight float64 numbers as one value inside compiled kernels.

Numba vectorizes loops that it can prove independent; the accumulators of a register tile it leaves
in memory. ``Lanes`` is LLVM's ``<8 x double>``, so a kernel says which numbers stay in registers;
processors with narrower ones get the same values in pieces.

`load` and `store` move entries of 64 bytes. `widen` and `narrow` move eight neighbours of a line of
numbers in any storage type, `number` and `put` one: float32 or float64, the bits of bfloat16 as
uint16 and those of float16 as int16, integers as uint8 (which are read only).
"""

import operator
from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDE = 8
BYTES = 64

_double, _float, _half = ir.DoubleType(), ir.FloatType(), ir.HalfType()
_int32, _int16 = ir.IntType(32), ir.IntType(16)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


Lanes = _Lanes()


def _vector(element: Any, count: int = WIDE) -> Any:
    return ir.VectorType(element, count)


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _vector(_double))  # type: ignore[no-untyped-call]


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of compiled kernels, without the typing context that Numba passes."""
    return cast(Callable[..., Any], intrinsic(function))


def _like(vector: Any, element: Any) -> Any:
    """The type of as many other elements."""
    return _vector(element, vector.type.count)


def _constant(vector: Any, value: Any) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _first(builder: Any, value: Any) -> Any:
    return builder.extract_element(value, ir.Constant(_int32, 0))


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call an LLVM intrinsic on vectors or numbers of one type."""
    kind = arguments[0].type
    suffix = f"v{kind.count}f64" if isinstance(kind, ir.VectorType) else "f64"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    insert: Callable[..., Any] = cgutils.get_or_insert_function
    return builder.call(insert(builder.module, signature, f"llvm.{name}.{suffix}"), arguments)


def _is_line(array: Any) -> bool:
    return isinstance(array, types.Array) and array.layout == "C"


def _address(context: Any, builder: Any, array: Any, value: Any, index: Any, unit: Any) -> Any:
    """The address that is `index` units of a type from the start of a C-contiguous array."""
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(builder.bitcast(data, unit.as_pointer()), [index])


@_intrinsic
def load(typingctx: Any, array: Any, entry: Any) -> Any:
    """Entry number `entry` of an array of float64, eight by eight."""
    if not (_is_line(array) and array.dtype == types.float64):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, array, args[0], args[1], _vector(_double))
        return builder.load(address, align=8)

    return Lanes(array, types.intp), code


@_intrinsic
def store(typingctx: Any, array: Any, entry: Any, value: Any) -> Any:
    """Write entry number `entry`; see `load`."""
    if not (_is_line(array) and array.dtype == types.float64 and value == Lanes):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, array, args[0], args[1], _vector(_double))
        builder.store(args[2], address, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes), code


@_intrinsic
def widen(typingctx: Any, array: Any, index: Any) -> Any:
    """Numbers `index` to `index` + 7 of a line as float64."""
    if not _is_line(array):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _widen(context, builder, array, args, WIDE)

    return Lanes(array, types.intp), code


@_intrinsic
def number(typingctx: Any, array: Any, index: Any) -> Any:
    """Number `index` of a line as float64."""
    if not _is_line(array):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _first(builder, _widen(context, builder, array, args, 1))

    return types.float64(array, types.intp), code


@_intrinsic
def narrow(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Round to the nearest eight numbers of a line, `index` and on; 16-bit types from float32."""
    if not (_is_line(array) and value == Lanes):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _narrow(context, builder, array, *args)

    return types.void(array, types.intp, Lanes), code


@_intrinsic
def put(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Round to the nearest number of a line; see `narrow`."""
    if not _is_line(array):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = ir.Constant(_vector(_double, 1), ir.Undefined)
        value = builder.insert_element(nothing, args[2], ir.Constant(_int32, 0))
        return _narrow(context, builder, array, args[0], args[1], value)

    return types.void(array, types.intp, types.float64), code


def _widen(context: Any, builder: Any, array: Any, args: Any, count: int) -> Any:
    element = context.get_data_type(array.dtype)
    address = _address(context, builder, array, args[0], args[1], element)
    address = builder.bitcast(address, _vector(element, count).as_pointer())
    value = builder.load(address, align=array.dtype.bitwidth // 8)
    if array.dtype == types.uint8:
        return builder.uitofp(value, _vector(_double, count))
    if array.dtype == types.uint16:
        bits = builder.zext(value, _vector(_int32, count))
        bits = builder.shl(bits, _constant(bits.type, 16))
        value = builder.bitcast(bits, _vector(_float, count))
    elif array.dtype == types.int16:
        value = _from_float16(context, builder, value)
    return value if array.dtype == types.float64 else builder.fpext(value, _vector(_double, count))


def _narrow(context: Any, builder: Any, array: Any, data: Any, index: Any, value: Any) -> Any:
    element = context.get_data_type(array.dtype)
    address = _address(context, builder, array, data, index, element)
    if array.dtype != types.float64:
        value = builder.fptrunc(value, _like(value, _float))
    if array.dtype == types.uint16:
        bits = builder.bitcast(value, _like(value, _int32))
        value = builder.trunc(_round_bits(builder, bits, 16), _like(value, _int16))
    elif array.dtype == types.int16:
        value = _to_float16(builder, value)
    builder.store(
        value, builder.bitcast(address, value.type.as_pointer()), align=array.dtype.bitwidth // 8
    )
    return context.get_dummy_value()


def _from_float16(context: Any, builder: Any, value: Any) -> Any:
    """By the processor or in integers, which numbers below 2^-14 do not slow down."""
    triple, _, features = context.codegen().magic_tuple()
    if "+f16c" in features or triple.startswith(("aarch64", "arm64")):
        return builder.fpext(builder.bitcast(value, _like(value, _half)), _like(value, _float))
    value = builder.zext(value, _like(value, _int32))
    size = builder.and_(value, _constant(value.type, 0x7FFF))
    sign = builder.shl(builder.sub(value, size), _constant(value.type, 16))
    bits = builder.shl(size, _constant(value.type, 13))
    bits = builder.add(bits, _constant(value.type, 112 << 23))
    special = builder.icmp_unsigned(">=", size, _constant(value.type, 0x7C00))
    bits = builder.select(special, builder.or_(bits, _constant(value.type, 0x7F800000)), bits)
    unit = _constant(_like(value, _float), 2.0**-24)
    small = builder.fmul(builder.uitofp(size, _like(value, _float)), unit)
    below = builder.icmp_unsigned("<", size, _constant(value.type, 0x0400))
    bits = builder.select(below, builder.bitcast(small, value.type), bits)
    return builder.bitcast(builder.or_(bits, sign), _like(value, _float))


def _to_float16(builder: Any, value: Any) -> Any:
    """For numbers that do not overflow."""
    bits = builder.bitcast(value, _like(value, _int32))
    size = builder.and_(bits, _constant(bits.type, 0x7FFFFFFF))
    sign = builder.lshr(builder.sub(bits, size), _constant(bits.type, 16))
    normal = _round_bits(builder, builder.sub(size, _constant(bits.type, 112 << 23)), 13)
    # The last place of 1/2 is that of all numbers below 2^-14, so adding it rounds them.
    half = builder.fadd(builder.bitcast(size, value.type), _constant(value.type, 0.5))
    small = builder.sub(builder.bitcast(half, bits.type), _constant(bits.type, 126 << 23))
    below = builder.icmp_unsigned("<", size, _constant(bits.type, 113 << 23))
    code = builder.or_(builder.select(below, small, normal), sign)
    return builder.trunc(code, _like(value, _int16))


def _round_bits(builder: Any, bits: Any, dropped: int) -> Any:
    """Drop low bits, rounding to nearest even."""
    shift = _constant(bits.type, dropped)
    odd = builder.and_(builder.lshr(bits, shift), _constant(bits.type, 1))
    half = builder.add(bits, _constant(bits.type, (1 << (dropped - 1)) - 1))
    return builder.lshr(builder.add(half, odd), shift)


@_intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """The same number in all lanes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = ir.Constant(_vector(_double), ir.Undefined)
        one = builder.insert_element(nothing, args[0], ir.Constant(_int32, 0))
        return builder.shuffle_vector(one, one, _constant(_vector(_int32), 0))

    return Lanes(types.float64), code


@_intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c for lanes or numbers, rounded once where the processor can."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "fmuladd", *args)

    return a(a, a, a), code


@_intrinsic
def multiply_subtract(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """c - a b; see `multiply_add`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "fmuladd", builder.fneg(args[0]), args[1], args[2])

    return a(a, a, a), code


@_intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """The square roots."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "sqrt", args[0])

    return a(a), code


@_intrinsic
def magnitude(typingctx: Any, a: Any) -> Any:
    """The absolute values."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "fabs", args[0])

    return a(a), code


@_intrinsic
def where_positive(typingctx: Any, s: Any, a: Any, b: Any) -> Any:
    """a where s > 0, else b."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        positive = builder.fcmp_ordered(">", args[0], _constant(args[0].type, 0.0))
        return builder.select(positive, args[1], args[2])

    return a(a, a, a), code


@_intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum over the lanes, halves first."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, half = args[0], WIDE // 2
        while half:
            low, high = (
                builder.shuffle_vector(
                    value, value, ir.Constant(_vector(_int32, half), [*range(at, at + half)])
                )
                for at in (0, half)
            )
            value, half = builder.fadd(low, high), half // 2
        return _first(builder, value)

    return types.float64(a), code


@_intrinsic
def transpose(
    typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any
) -> Any:
    """Eight times eight numbers, transposed, as a tuple."""
    rows: Any = types.UniTuple(a, WIDE)  # type: ignore[no-untyped-call]

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = WIDE // 2
        zips = [
            ir.Constant(_vector(_int32), [at + k // 2 + WIDE * (k % 2) for k in range(WIDE)])
            for at in (0, half)
        ]
        for _ in range(3):  # zipping the halves is a perfect shuffle, and three of them transpose
            args = [
                builder.shuffle_vector(args[i], args[i + half], mask)
                for i in range(half)
                for mask in zips
            ]
        return context.make_tuple(builder, rows, args)

    return rows(*[a] * WIDE), code


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @_intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return Lanes(Lanes, Lanes), code

    @overload(symbol)
    def typed(a: Any, b: Any) -> Any:
        def applied(a: Any, b: Any) -> Any:
            return apply(a, b)

        return applied if a == Lanes and b == Lanes else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")
