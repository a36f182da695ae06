"""64 bytes of float32 or float64 numbers as one value inside compiled kernels.

A ``Pack`` is LLVM's ``<16 x float>`` or ``<8 x double>``; processors with narrower registers get
the same values in pieces. `power_of_two` and `logarithm` are the library's own: the ones of a C
library are neither vectorized nor the same everywhere.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

from quadric.linalg.numba.jit import inlined

Array = NDArray[Any]
Line = Any
"""A contiguous array of float32 or float64 numbers, or a `pointer` to one."""

BYTES = 64

_index = ir.IntType(32)


class _Pack(types.Type):
    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"Pack({element})")


_PACKS = {element: _Pack(element) for element in (types.float32, types.float64)}
_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INTEGER = {types.float32: ir.IntType(32), types.float64: ir.IntType(64)}


def _count(element: Any) -> int:
    return int(BYTES * 8 // element.bitwidth)


def _vector(element: Any) -> Any:
    return ir.VectorType(_LLVM[element], _count(element))


@register_model(_Pack)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        vector = _vector(fe_type.element)
        super().__init__(manager, fe_type, vector)  # type: ignore[no-untyped-call]


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of compiled kernels, without the typing context that Numba passes."""
    return cast(Callable[..., Any], intrinsic(function))


def _is_line(line: Any) -> bool:
    if isinstance(line, types.CPointer):
        return line.dtype in _PACKS
    contiguous = isinstance(line, types.Array) and line.layout == "C" and line.ndim == 1
    return contiguous and line.dtype in _PACKS


def _constant(vector: Any, value: Any) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call an LLVM intrinsic on vectors of one type."""
    kind = arguments[0].type
    bits = 32 if kind.element == ir.FloatType() else 64
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    insert: Callable[..., Any] = cgutils.get_or_insert_function
    function = insert(builder.module, signature, f"llvm.{name}.v{kind.count}f{bits}")
    return builder.call(function, arguments)


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_index, 0))
    return builder.shuffle_vector(
        one, one, ir.Constant(ir.VectorType(_index, vector.count), [0] * vector.count)
    )


def _start(context: Any, builder: Any, line: Any, value: Any) -> Any:
    if isinstance(line, types.CPointer):
        return value
    return context.make_array(line)(context, builder, value).data


def _address(context: Any, builder: Any, line: Any, value: Any, index: Any, target: Any) -> Any:
    start = _start(context, builder, line, value)
    return builder.bitcast(builder.gep(start, [index]), target.as_pointer())


@_intrinsic
def pointer(typingctx: Any, line: Any) -> Any:
    """Where a line begins.

    Arrays that kernels hand to each other are counted, in atomic operations; pointers are not, and
    do not keep the memory alive. An index is used as it is, never from the end.
    """
    if not (isinstance(line, types.Array) and line.layout == "C" and line.ndim == 1):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _start(context, builder, line, args[0])

    kind: Any = types.CPointer(line.dtype)  # type: ignore[no-untyped-call]
    return kind(line), code


@_intrinsic
def lanes(typingctx: Any, line: Any) -> Any:
    """How many numbers of a line make a pack."""
    if not _is_line(line):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, _count(line.dtype))

    return types.intp(line), code


@_intrinsic
def load(typingctx: Any, line: Any, index: Any) -> Any:
    """The numbers of a line from `index` on."""
    if not _is_line(line):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, line, args[0], args[1], _vector(line.dtype))
        return builder.load(address, align=line.dtype.bitwidth // 8)

    return _PACKS[line.dtype](line, types.intp), code


@_intrinsic
def prefetch(typingctx: Any, line: Any, index: Any) -> Any:
    """Ask for the cache line of number `index`, which may lie outside of the line."""
    if not _is_line(line):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        address = _address(context, builder, line, args[0], args[1], ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [byte, _index, _index, _index])
        insert: Callable[..., Any] = cgutils.get_or_insert_function
        function = insert(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = ir.Constant(_index, 0), ir.Constant(_index, 3), ir.Constant(_index, 1)
        builder.call(function, [address, read, keep, data])
        return context.get_dummy_value()

    return types.void(line, types.intp), code


@_intrinsic
def store(typingctx: Any, line: Any, index: Any, value: Any) -> Any:
    """Write numbers to a line from `index` on; float64 to a line of float32 is rounded."""
    if not (_is_line(line) and isinstance(value, _Pack)):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pack = args[2]
        if value.element != line.dtype:
            pack = builder.fptrunc(pack, ir.VectorType(ir.FloatType(), pack.type.count))
        address = _address(context, builder, line, args[0], args[1], pack.type)
        builder.store(pack, address, align=line.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(line, types.intp, value), code


@_intrinsic
def widen(typingctx: Any, line: Any, index: Any) -> Any:
    """Eight numbers of a line from `index` on, as float64."""
    if not _is_line(line):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = _vector(types.float64)
        source = ir.VectorType(_LLVM[line.dtype], wide.count)
        address = _address(context, builder, line, args[0], args[1], source)
        pack = builder.load(address, align=line.dtype.bitwidth // 8)
        return pack if line.dtype == types.float64 else builder.fpext(pack, wide)

    return _PACKS[types.float64](line, types.intp), code


@_intrinsic
def turn(
    typingctx: Any, source: Any, start: Any, step: Any, target: Any, at: Any, stride: Any
) -> Any:
    """Transpose a square of numbers, with rows `step` apart, to rows `stride` apart.

    Its side is that of a pack of the target; float32 may become float64.
    """
    if not (_is_line(source) and _is_line(target)):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, start, step, second, at, stride = args
        vector = _vector(target.dtype)
        count = vector.count
        narrow = ir.VectorType(_LLVM[source.dtype], count)
        rows = []
        for _ in range(count):
            address = _address(context, builder, source, first, start, narrow)
            row = builder.load(address, align=source.dtype.bitwidth // 8)
            rows.append(row if source.dtype == target.dtype else builder.fpext(row, vector))
            start = builder.add(start, step)
        half, indices = count // 2, ir.VectorType(_index, count)
        zips = [
            ir.Constant(indices, [low + k // 2 + count * (k % 2) for k in range(count)])
            for low in (0, half)
        ]
        for _ in range(count.bit_length() - 1):  # zipping the halves is a perfect shuffle
            rows = [
                builder.shuffle_vector(rows[i], rows[i + half], mask)
                for i in range(half)
                for mask in zips
            ]
        for row in rows:
            address = _address(context, builder, target, second, at, vector)
            builder.store(row, address, align=target.dtype.bitwidth // 8)
            at = builder.add(at, stride)
        return context.get_dummy_value()

    return (
        types.void(source, types.intp, types.intp, target, types.intp, types.intp),
        code,
    )


@_intrinsic
def spread(typingctx: Any, line: Any, value: Any) -> Any:
    """The same number in all lanes of a pack of the line's type."""
    if not _is_line(line):
        return None
    number = value if value == line.dtype else types.float64

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = args[1]
        if number != line.dtype:
            scalar = builder.fptrunc(scalar, _LLVM[line.dtype])
        return _spread(builder, scalar, _vector(line.dtype))

    return _PACKS[line.dtype](line, number), code


@_intrinsic
def repeat(typingctx: Any, line: Any, index: Any) -> Any:
    """Number `index` of a line in all lanes."""
    if not _is_line(line):
        return None

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = _start(context, builder, line, args[0])
        number = builder.load(builder.gep(start, [args[1]]))
        return _spread(builder, number, _vector(line.dtype))

    return _PACKS[line.dtype](line, types.intp), code


@_intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the processor can."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "fmuladd", *args)

    return a(a, a, a), code


@_intrinsic
def magnitude(typingctx: Any, a: Any) -> Any:
    """The absolute values."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "fabs", *args)

    return a(a), code


@_intrinsic
def square_root(typingctx: Any, a: Any) -> Any:
    """The square roots."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "sqrt", *args)

    return a(a), code


@_intrinsic
def signed(typingctx: Any, a: Any, b: Any) -> Any:
    """a where b > 0, -a where b < 0, 0 where b = 0."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = _constant(args[0].type, 0.0)
        positive = builder.fcmp_ordered(">", args[1], zero)
        negative = builder.fcmp_ordered("<", args[1], zero)
        below = builder.select(negative, builder.fneg(args[0]), zero)
        return builder.select(positive, args[0], below)

    return a(a, a), code


@_intrinsic
def higher(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each two numbers; b where a is NaN."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), code


@_intrinsic
def lower(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller of each two numbers; b where a is NaN."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, a), code


@_intrinsic
def reaching(typingctx: Any, a: Any, b: Any) -> Any:
    """A number whose bit i says whether a >= b in lane i."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.fcmp_ordered(">=", *args)
        bits = builder.bitcast(mask, ir.IntType(mask.type.count))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(a, a), code


@_intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum over the lanes in float64, halves first."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, half = args[0], args[0].type.count // 2
        if value.type.element == ir.FloatType():
            value = builder.fpext(value, ir.VectorType(ir.DoubleType(), value.type.count))
        while half:
            low, high = (
                builder.shuffle_vector(
                    value,
                    value,
                    ir.Constant(ir.VectorType(_index, half), [*range(at, at + half)]),
                )
                for at in (0, half)
            )
            value, half = builder.fadd(low, high), half // 2
        return builder.extract_element(value, ir.Constant(_index, 0))

    return types.float64(a), code


@_intrinsic
def largest(typingctx: Any, a: Any) -> Any:
    """The largest number of the lanes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        best = builder.extract_element(args[0], ir.Constant(_index, 0))
        for lane in range(1, args[0].type.count):
            value = builder.extract_element(args[0], ir.Constant(_index, lane))
            best = builder.select(builder.fcmp_ordered(">", value, best), value, best)
        return best

    return a.element(a), code


# Minimax polynomials of 2^f for |f| <= 1/2, the highest power first; relative errors 1.9e-9 and
# 3.1e-18.
_POWER: dict[Any, list[float]] = {
    types.float32: [
        1.53458121623e-4, 1.3399931177e-3, 9.6184889564e-3, 5.55032877711e-2,
        2.402264689065e-1, 6.931472057372e-1, 1.0,
    ],
    types.float64: [
        4.4352827069572771511e-10, 7.0741056135081427963e-9, 1.0178198021671930844e-7,
        1.321543308967639918e-6, 1.5252733489988525649e-5, 1.5403530462514432062e-4,
        1.3333558146789921722e-3, 9.6181291075883352443e-3, 5.5504108664819921605e-2,
        2.4022650695910156204e-1, 6.9314718055994533046e-1, 1.0,
    ],
}  # fmt: skip
_FRACTION = {types.float32: 23, types.float64: 52}


@_intrinsic
def power_of_two(typingctx: Any, a: Any, scale: Any, low: Any, high: Any) -> Any:
    """2^(a scale), at most that of high scale, within 2 ulp; 0 where a < low, and for NaN.

    low scale must not be below the exponent of the smallest normal number, high scale must be
    below that of infinity.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, factor, least, most = args
        kind, fraction = x.type, _FRACTION[a.element]
        integers = ir.VectorType(_INTEGER[a.element], kind.count)
        counted = builder.fcmp_ordered(">=", x, least)
        x = builder.select(builder.fcmp_ordered("<", x, most), x, most)
        # The last bits of 1.5 * 2^fraction + n are the integer n.
        magic = _constant(kind, 1.5 * 2.0**fraction)
        shifted = _call(builder, "fmuladd", x, factor, magic)
        whole = builder.fsub(shifted, magic)
        rest = _call(builder, "fmuladd", x, factor, builder.fneg(whole))
        # Rounded here: LLVM wants constants that are exact.
        numbers = [float(np.dtype(str(a.element)).type(c)) for c in _POWER[a.element]]
        value = _constant(kind, numbers[0])
        for number in numbers[1:]:
            value = _call(builder, "fmuladd", value, rest, _constant(kind, number))
        exponent = builder.shl(builder.bitcast(shifted, integers), _constant(integers, fraction))
        bits = builder.add(builder.bitcast(value, integers), exponent)
        bits = builder.select(counted, bits, _constant(integers, 0))
        return builder.bitcast(bits, kind)

    return a(a, a, a, a), code


@_intrinsic
def _octave(typingctx: Any, a: Any) -> Any:
    """(e, x) with a = 2^e x and x between sqrt(1/2) and sqrt(2); float64, a normal."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        integers = ir.VectorType(ir.IntType(64), kind.count)
        bits = builder.bitcast(args[0], integers)
        root = _constant(integers, int(np.float64(np.sqrt(0.5)).view(np.int64)))
        shift = _constant(integers, 52)
        whole = builder.ashr(builder.sub(bits, root), shift)
        rest = builder.bitcast(builder.sub(bits, builder.shl(whole, shift)), kind)
        pair = [builder.sitofp(whole, kind), rest]
        return context.make_tuple(builder, signature.return_type, pair)

    pair: Any = types.UniTuple(a, 2)  # type: ignore[no-untyped-call]
    return pair(a), code


_SERIES = np.array([2 / np.log(2) / k for k in range(21, 0, -2)])


@inlined
def logarithm(line: Line, a: Any) -> Any:
    """log2 of positive normal float64 numbers; `line` is any line of float64."""
    exponent, x = _octave(a)
    one = spread(line, 1.0)
    s = (x - one) / (x + one)
    square = s * s
    value = spread(line, _SERIES[0])
    for i in range(1, len(_SERIES)):
        value = multiply_add(value, square, spread(line, _SERIES[i]))
    return multiply_add(value, s, exponent)


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @_intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return a(a, a), code

    @overload(symbol)
    def typed(a: Any, b: Any) -> Any:
        def applied(a: Any, b: Any) -> Any:
            return apply(a, b)

        return applied if isinstance(a, _Pack) and a == b else None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@inlined
def workspace(size: int, like: Array) -> Array:
    """Uninitialized numbers of the line's type, aligned: no pack crosses a cache line."""
    spare = lanes(like)
    buffer = np.empty(size + spare, like.dtype)
    start = (-buffer.ctypes.data % BYTES) // like.itemsize
    return buffer[start : start + size]
