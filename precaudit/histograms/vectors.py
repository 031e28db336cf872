"""The inner loop of the CPU pass, written as vectors: LLVM finds no vectors this good by itself.

It takes the address of memory padded to whole turns and is inlined where numba compiled code calls it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

PLACES = 32
"""Bits of the word that stands for an exponent."""

LEVELS = 11
"""Binary digits of what one lane counts."""

_WORD, _LONG, _SINGLE, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_MANTISSA = 23
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
_WORDS, _TREE = 16 if _WIDE else 8, 4  # 32-bit lanes of a vector, and levels that one turn fills once
_PARTS = 2**_TREE
_LINE = 64  # bytes of memory that come together
# Bytes from a value that is read to the one that the memory is asked for, and how near it is to come, 3 the nearest.
_AHEAD, _NEARNESS = (8192, 2) if _WIDE else (2048, 3)

STRIDE = _WORDS * _PARTS
"""Values that a turn takes: sizes are multiples of it."""

ALIGNMENT = 4 * _WORDS
"""Bytes of a vector: what is written past the caches must begin at a multiple of them."""

MOST = (2**LEVELS - 1) * _WORDS
"""Values after which a lane would have no digit left."""

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


def _full_adder(builder: Value, a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    """Three bits of one weight as one of it and one of twice the weight, in every place."""
    half = builder.xor(a, b)
    return builder.xor(half, c), builder.or_(builder.and_(a, b), builder.and_(half, c))


class _Tally:
    """Builds the loop of `tally`, over the values at an address.

    A value stands for its exponent by one bit of a word. The words are added place by place by full adders: the
    first four levels take a turn's words together, the others one carry a turn. So level k holds, for every place,
    a bit that weighs 2**k.
    """

    words = ir.VectorType(_WORD, _WORDS)
    starts = (
        _splat(_WORD, 0, _WORDS),
        _splat(_WORD, -1, _WORDS),
        _splat(_DOUBLE, 0.0, _WORDS),
        *[_splat(_WORD, 0, _WORDS)] * LEVELS,
    )

    def __init__(self, builder: Value, address: Value) -> None:
        self.builder, self.address = builder, address

    def larger(self, a: Value, b: Value) -> Value:
        return self.builder.select(self.builder.icmp_unsigned(">", a, b), a, b)

    def smaller(self, a: Value, b: Value) -> Value:
        return self.builder.select(self.builder.icmp_unsigned("<", a, b), a, b)

    def plus(self, a: Value, b: Value) -> Value:
        return self.builder.fadd(a, b, flags=("contract",))

    def square(self, bits: Value) -> Value:
        value = self.builder.fpext(self.builder.bitcast(bits, ir.VectorType(_SINGLE, _WORDS)), self.starts[2].type)
        return self.builder.fmul(value, value, flags=("contract",))

    def place(self, bits: Value) -> Value:
        """One bit, at the exponent modulo 32; the sign is left behind."""
        exponent = self.builder.lshr(bits, _splat(_WORD, _MANTISSA, _WORDS))
        remainder = self.builder.and_(exponent, _splat(_WORD, PLACES - 1, _WORDS))
        return self.builder.shl(_splat(_WORD, 1, _WORDS), remainder)

    def carry(self, level: int, levels: list[Value], words: Iterator[Value]) -> Value:
        """What a level hands on of the words that fill it once; depth first, so that few of them live at a time."""
        if level < 0:
            return next(words)
        first, second = self.carry(level - 1, levels, words), self.carry(level - 1, levels, words)
        levels[level], carry = _full_adder(self.builder, levels[level], first, second)
        return carry

    def body(self, index: Value, carried: list[Value]) -> list[Value]:
        build = self.builder
        extremes_and_squares, levels = carried[:3], carried[3:]
        start = build.shl(index, ir.Constant(_LONG, 2))
        carry = self.carry(_TREE - 1, levels, self.words_of(start, extremes_and_squares))
        for level in range(_TREE, LEVELS):
            held = levels[level]
            levels[level], carry = build.xor(held, carry), build.and_(held, carry)
        return [*extremes_and_squares, *levels]

    def words_of(self, start: Value, found: list[Value]) -> Iterator[Value]:
        for part in range(_PARTS):
            bits = self.read(self.builder.add(start, ir.Constant(_LONG, ALIGNMENT * part)), part)
            magnitude = self.builder.and_(bits, _splat(_WORD, 0x7FFFFFFF, _WORDS))
            found[0] = self.larger(found[0], magnitude)
            found[1] = self.smaller(found[1], magnitude)
            found[2] = self.plus(found[2], self.square(bits))
            yield self.place(bits)

    def read(self, offset: Value, part: int) -> Value:
        """The bits of the values that lie so far from the first."""
        return self.stream(self.builder.add(self.address, offset), part)

    def stream(self, address: Value, part: int) -> Value:
        """A vector of a source that is read once; a line of the memory is asked for at a time."""
        if part % (_LINE // ALIGNMENT) == 0:
            self.prefetch(self.builder.add(address, ir.Constant(_LONG, _AHEAD)))
        return _load(self.builder, address, self.words)

    def prefetch(self, address: Value) -> None:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _WORD, _WORD, _WORD])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        constants = [ir.Constant(_WORD, value) for value in (0, _NEARNESS, 1)]
        self.builder.call(function, [self.builder.inttoptr(address, pointer), *constants])

    def count(self, levels: list[Value], place: Value) -> Value:
        """How many values have their bit at this place."""
        build, total = self.builder, ir.Constant(_WORD, 0)
        shift = build.sub(ir.Constant(_WORD, PLACES - 1), place)
        first = build.insert_element(ir.Constant(self.words, ir.Undefined), shift, ir.Constant(_WORD, 0))
        everywhere = build.shuffle_vector(first, first, _splat(_WORD, 0, _WORDS))
        for level, held in enumerate(levels):
            is_set = build.icmp_signed("<", build.shl(held, everywhere), _splat(_WORD, 0, _WORDS))
            lanes = build.zext(build.bitcast(is_set, ir.IntType(_WORDS)), _WORD)
            total = build.add(total, build.shl(build.ctpop(lanes), ir.Constant(_WORD, level)))
        return build.zext(total, _LONG)

    def store(self, counts: Value, levels: list[Value], low: Value, high: Value) -> None:
        """The counts of the places from one exponent to another; of all where there are more exponents than places."""
        build, most = self.builder, ir.Constant(_LONG, PLACES - 1)
        width = build.sub(high, low)
        number = build.add(build.select(build.icmp_unsigned(">", width, most), most, width), ir.Constant(_LONG, 1))

        def body(index: Value, _carried: list[Value]) -> list[Value]:
            place = build.and_(build.add(low, index), most)
            target = build.inttoptr(build.add(counts, build.shl(place, ir.Constant(_LONG, 3))), _LONG.as_pointer())
            build.store(self.count(levels, build.trunc(place, _WORD)), target)
            return []

        _loop(build, number, 1, [], body)


class _TallyDifference(_Tally):
    """Over the differences of two sources, which are kept at a third address for a second look."""

    def __init__(self, builder: Value, new: Value, old: Value, kept: Value) -> None:
        super().__init__(builder, new)
        self.old, self.kept = old, kept

    def read(self, offset: Value, part: int) -> Value:
        build, singles = self.builder, ir.VectorType(_SINGLE, _WORDS)
        new, old = (self.stream(build.add(source, offset), part) for source in (self.address, self.old))
        difference = build.bitcast(build.fsub(build.bitcast(new, singles), build.bitcast(old, singles)), self.words)
        target = build.inttoptr(build.add(self.kept, offset), self.words.as_pointer())
        build.store(difference, target).align = 1
        return difference


class _TallyCopy(_Tally):
    """Over values that are also written elsewhere, past the caches: nobody reads them there soon."""

    def __init__(self, builder: Value, address: Value, copy: Value) -> None:
        super().__init__(builder, address)
        self.copy = copy

    def read(self, offset: Value, part: int) -> Value:
        bits = super().read(offset, part)
        target = self.builder.inttoptr(self.builder.add(self.copy, offset), self.words.as_pointer())
        stored = self.builder.store(bits, target)
        stored.align = ALIGNMENT
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_WORD, 1)]))
        return bits


_FOUND = types.Tuple((types.int64, types.int64, types.float64))


def _generate(kind: type[_Tally]) -> Callable[..., Value]:
    """Code for the loop over the sources that `kind` takes, which come before the size and the counts' address."""

    def generate(context: Any, builder: Value, _signature: Any, arguments: list[Value]) -> Value:
        *sources, size, counts = arguments
        build = kind(builder, *sources)
        top, least, squares, *levels = _loop(builder, size, STRIDE, list(build.starts), build.body)
        top = builder.zext(_fold(builder, top, build.larger), _LONG)
        least = builder.zext(_fold(builder, least, build.smaller), _LONG)
        squares = _fold(builder, squares, build.plus)
        mantissa = ir.Constant(_LONG, _MANTISSA)
        build.store(counts, levels, builder.lshr(least, mantissa), builder.lshr(top, mantissa))
        return context.make_tuple(builder, _FOUND, [top, least, squares])

    return generate


@intrinsic
def tally(_context, address, size, counts):  # noqa: ANN001, ANN201
    """Of `size` float32 values, `MOST` at most: the largest and the smallest bits without sign, and the sum of
    squares, exact but for the rounding of float64 sums. At `counts`, 32 integers: how many values have an exponent
    with this remainder, written where one between the extremes' has it."""
    return _FOUND(*[types.int64] * 3), _generate(_Tally)


@intrinsic
def tally_difference(_context, new, old, kept, size, counts):  # noqa: ANN001, ANN201
    """As `tally` of the values at `new` less those at `old`; the differences are left at `kept`."""
    return _FOUND(*[types.int64] * 5), _generate(_TallyDifference)


@intrinsic
def tally_copy(_context, address, copy, size, counts):  # noqa: ANN001, ANN201
    """As `tally`; the values are also written to `copy`, which is a multiple of `ALIGNMENT`."""
    return _FOUND(*[types.int64] * 4), _generate(_TallyCopy)


@intrinsic
def fetch_add(_context, address, value):  # noqa: ANN001, ANN201
    """The 64-bit integer at `address`, which grows by `value` in the same instant, whoever else reads it."""

    def generate(_context, builder, _signature, arguments):  # noqa: ANN001, ANN202
        pointer = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def call_team(_context, start, member, task, threads):  # noqa: ANN001, ANN201
    """GNU OpenMP's `GOMP_parallel`, at the address `start`: every thread calls `member` with the task's address."""

    def generate(context, builder, _signature, arguments):  # noqa: ANN001, ANN202
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, _WORD, _WORD])
        start, member, task, threads = arguments
        function = builder.inttoptr(start, kind.as_pointer())
        member, task = (builder.inttoptr(each, pointer) for each in (member, task))
        builder.call(function, [member, task, builder.trunc(threads, _WORD), ir.Constant(_WORD, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate
