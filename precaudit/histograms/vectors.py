"""The two inner loops of the CPU pass, written as vectors: LLVM finds no vectors this good by itself.

Both take addresses of memory padded to whole vectors and are inlined where numba compiled code calls them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

STRIDE = 128
"""Values that a turn of the longer loop takes: sizes are multiples of it."""

MOST = 255 * STRIDE
"""Values after which a byte that counts one lane would wrap round."""

AHEAD = 4 * 4096
"""Bytes from a value that `scan` reads to the one that it asks the memory for: as much as a block of the pass."""

_BYTE, _SHORT, _WORD, _LONG, _DOUBLE = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.DoubleType()
_SINGLE = ir.FloatType()
_WORDS, _PARTS = 8, 4  # 32-bit lanes of a vector, and vectors that one turn of `scan` takes

Value = Any


def _splat(kind: ir.Type, value: float, lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _load(builder: Value, address: Value, kind: ir.Type) -> Value:
    """Not aligned: a tensor may begin anywhere."""
    vector = builder.load(builder.inttoptr(address, kind.as_pointer()))
    vector.align = 1
    return vector


def _pick(builder: Value, vector: Value, lanes: range) -> Value:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_WORD, len(lanes)), list(lanes)))


def _join(builder: Value, left: Value, right: Value) -> Value:
    lanes = 2 * left.type.count
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_WORD, lanes), list(range(lanes))))


def _fold(builder: Value, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes combined, halves with each other first."""
    while (lanes := vector.type.count) > 1:
        vector = combine(_pick(builder, vector, range(lanes // 2)), _pick(builder, vector, range(lanes // 2, lanes)))
    return builder.extract_element(vector, ir.Constant(_WORD, 0))


def _loop(
    builder: Value, size: Value, step: int, starts: list[Value], body: Callable[[Value, list[Value]], list[Value]]
) -> list[Value]:
    """`body` for every index from 0 in steps, at least once; what it carries from turn to turn, at the end."""
    before, function = builder.block, builder.function
    turn, after = function.append_basic_block("turn"), function.append_basic_block("after")
    builder.branch(turn)
    builder.position_at_end(turn)
    index, carried = builder.phi(_LONG), [builder.phi(start.type) for start in starts]
    results = body(index, carried)
    following = builder.add(index, ir.Constant(_LONG, step))
    for phi, start, result in zip(
        (index, *carried), (ir.Constant(_LONG, 0), *starts), (following, *results), strict=True
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(result, turn)
    builder.cbranch(builder.icmp_unsigned("<", following, size), turn, after)
    builder.position_at_end(after)
    return results


class _Scan:
    """Builds the loop of `scan`."""

    words = ir.VectorType(_WORD, _WORDS)
    starts = (_splat(_WORD, 0, _WORDS), _splat(_WORD, -1, _WORDS), *[_splat(_DOUBLE, 0.0, _WORDS)] * 2)

    def __init__(self, builder: Value, address: Value, exponents: Value) -> None:
        self.builder, self.address, self.exponents = builder, address, exponents

    def larger(self, a: Value, b: Value) -> Value:
        return self.builder.select(self.builder.icmp_unsigned(">", a, b), a, b)

    def smaller(self, a: Value, b: Value) -> Value:
        return self.builder.select(self.builder.icmp_unsigned("<", a, b), a, b)

    def plus(self, a: Value, b: Value) -> Value:
        return self.builder.fadd(a, b)

    def prefetch(self, start: Value) -> None:
        """The lines of the next block: while this one's exponents are counted, nothing else asks for memory."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        for line in range(0, 4 * _WORDS * _PARTS, 64):
            ahead = self.builder.add(start, ir.Constant(_LONG, AHEAD + line))
            constants = [ir.Constant(_WORD, value) for value in (0, 3, 1)]
            self.builder.call(function, [self.builder.inttoptr(ahead, pointer), *constants])

    def body(self, index: Value, carried: list[Value]) -> list[Value]:
        build = self.builder
        top, smallest, *squares = carried
        start = build.add(self.address, build.shl(index, ir.Constant(_LONG, 2)))
        loaded = [
            _load(build, build.add(start, ir.Constant(_LONG, 4 * _WORDS * part)), self.words) for part in range(_PARTS)
        ]
        self.prefetch(start)
        for part, bits in enumerate(loaded):
            value = build.fpext(build.bitcast(bits, ir.VectorType(_SINGLE, _WORDS)), squares[0].type)
            square = build.fmul(value, value, flags=("contract",))
            squares[part % 2] = build.fadd(squares[part % 2], square, flags=("contract",))
        magnitudes = [build.and_(bits, _splat(_WORD, 0x7FFFFFFF, _WORDS)) for bits in loaded]
        # No value's magnitude less one is below that of zero, wrapped round.
        less_one = [build.sub(magnitude, _splat(_WORD, 1, _WORDS)) for magnitude in magnitudes]
        narrow = [build.lshr(magnitude, _splat(_WORD, 23, _WORDS)) for magnitude in magnitudes]
        whole = _join(build, _join(build, *narrow[:2]), _join(build, *narrow[2:]))
        packed = build.trunc(whole, ir.VectorType(_BYTE, _WORDS * _PARTS))
        store = build.store(packed, build.inttoptr(build.add(self.exponents, index), packed.type.as_pointer()))
        store.align = 1
        return [
            self.larger(top, reduce(self.larger, magnitudes)),
            self.smaller(smallest, reduce(self.smaller, less_one)),
            *squares,
        ]


@intrinsic
def scan(_context, address, exponents, size):  # noqa: ANN001, ANN201
    """Of float32 values: the largest bits without sign, the smallest non-zero ones less one, and the sum of squares,
    exact but for the rounding of float64 sums; the exponent of each goes into the bytes at `exponents`."""
    result = types.Tuple((types.int64, types.int64, types.float64))

    def generate(context, builder, _signature, arguments):  # noqa: ANN001, ANN202
        build = _Scan(builder, *arguments[:2])
        top, smallest, *squares = _loop(builder, arguments[2], _WORDS * _PARTS, list(build.starts), build.body)
        values = [
            builder.zext(_fold(builder, top, build.larger), _LONG),
            builder.zext(_fold(builder, smallest, build.smaller), _LONG),
            _fold(builder, build.plus(*squares), build.plus),
        ]
        return context.make_tuple(builder, result, values)

    return result(types.int64, types.int64, types.int64), generate


@intrinsic
def count_equal(_context, address, byte, size):  # noqa: ANN001, ANN201
    """How many of `size` bytes, `MOST` at most, equal `byte`: every lane counts in a byte of its own."""

    def generate(_context, builder, _signature, arguments):  # noqa: ANN001, ANN202
        start, byte, size = arguments
        kind = ir.VectorType(_BYTE, STRIDE)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), byte, ir.Constant(_WORD, 0))
        everywhere = builder.shuffle_vector(first, first, _splat(_WORD, 0, STRIDE))

        def body(index: Value, carried: list[Value]) -> list[Value]:
            equal = builder.icmp_unsigned("==", _load(builder, builder.add(start, index), kind), everywhere)
            return [builder.sub(carried[0], builder.sext(equal, kind))]

        (lanes,) = _loop(builder, size, STRIDE, [_splat(_BYTE, 0, STRIDE)], body)
        total = _fold(builder, builder.zext(lanes, ir.VectorType(_SHORT, STRIDE)), builder.add)
        return builder.zext(total, _LONG)

    return types.int64(types.int64, types.uint8, types.int64), generate


@intrinsic
def fetch_add(_context, address, value):  # noqa: ANN001, ANN201
    """The 64-bit integer at `address`, which grows by `value` in the same instant, whoever else reads it."""

    def generate(_context, builder, _signature, arguments):  # noqa: ANN001, ANN202
        pointer = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate
