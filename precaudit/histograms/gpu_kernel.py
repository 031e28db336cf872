"""The Triton kernel: values are counted by carry-save adders, in a window of binades that is speculated.

A program takes a stretch of a tensor and speculates that all magnitudes lie in a window of WINDOW - 1 binades
about that of its first tile. Every value is then one shift or rotation: a word with one bit set, at its binade's
place in the window, or the last bit for what lies outside. Words are counted bit-sliced: bit b of `ones`, `twos`,
`fours`, ... are the digits of how often bit b was set, and a full adder takes in two words at once (Harley-Seal).
The extremes tell afterwards whether the window held all but the zeros; a stretch for which it did not (or that
has subnormals or non-finite values) is counted EXACT, by windows of 63 binades over the whole of its range.
"""

# Triton specialises the kernel by the types that it takes; annotations would be about Python objects.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, annotation-unchecked"

from __future__ import annotations

import triton
import triton.language as tl

from precaudit.histograms import layout

EACH = tl.constexpr(16)
"""Values that a thread takes at a time: a tile has that many for every thread."""
MAX_TILES, MAX_STRETCH = 31, 2**16 - 1
"""What nine binary digits can count of one thread's values, and fields of 16 bits of all threads'."""
_AMAX, _SMALLEST, _SUM_SQUARES, _PEAK, _COUNTS = (
    tl.constexpr(place) for place in (layout.AMAX, layout.SMALLEST, layout.SUM_SQUARES, layout.PEAK, layout.COUNTS)
)


@triton.jit
def _halves(words):
    """[threads, 2n] as two of [threads, n], within each thread."""
    return tl.split(tl.reshape(words, [words.shape[0], words.shape[1] // 2, 2]))


@triton.jit
def _add(a, b, c):
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


@triton.jit
def _add_four(ones, twos, words):
    left, right = _halves(words)
    first, second = _halves(left)
    third, fourth = _halves(right)
    ones, carry = _add(ones, first, second)
    ones, other = _add(ones, third, fourth)
    twos, fours = _add(twos, carry, other)
    return ones, twos, fours


@triton.jit
def _add_eight(ones, twos, fours, words):
    left, right = _halves(words)
    ones, twos, carry = _add_four(ones, twos, left)
    ones, twos, other = _add_four(ones, twos, right)
    fours, eights = _add(fours, carry, other)
    return ones, twos, fours, eights


@triton.jit
def _magnitudes(values, other, offsets, numel, MASKED: tl.constexpr, SUBTRACT: tl.constexpr):
    """A tile's magnitudes as bits of float32 or float64; what lies past the end is zero."""
    mask = offsets < numel if MASKED else None
    padding = 0 if MASKED else None
    value = tl.load(values + offsets, mask=mask, other=padding)
    if SUBTRACT:
        value = value - tl.load(other + offsets, mask=mask, other=padding)
    if value.dtype == tl.int16:
        bits = (value.to(tl.int32) << 16) & 0x7FFFFFFF
    elif value.dtype == tl.float64:
        bits = value.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def _pairs(values, TILE: tl.constexpr):
    """As `_magnitudes` of bfloat16, two to a word: a shift or a mask makes float32 of each."""
    words = tl.load(values.to(tl.pointer_type(tl.int32), bitcast=True) + tl.arange(0, TILE // 2))
    return tl.reshape(tl.join(words << 16, words), [TILE]) & 0x7FFF0000


@triton.jit
def _tile(values, other, start, numel, SUBTRACT: tl.constexpr, TILE: tl.constexpr):
    """[threads, EACH] magnitudes, each thread those that it loads itself."""
    offsets = tl.arange(0, TILE)
    if start + TILE > numel:
        bits = _magnitudes(values + start, other + start, offsets, numel - start, True, SUBTRACT)
    elif values.dtype.element_ty == tl.int16:
        bits = _pairs(values + start, TILE)
    else:
        bits = _magnitudes(values + start, other + start, offsets, numel - start, False, SUBTRACT)
    vector: tl.constexpr = 128 // values.dtype.element_ty.primitive_bitwidth
    threads: tl.constexpr = TILE // EACH
    bits = tl.permute(tl.reshape(bits, [EACH // vector, threads, vector]), (1, 0, 2))
    return tl.reshape(bits, [threads, EACH])


@triton.jit
def _place(bits):
    """Place in a row's counts; a subnormal's exponent is that of its bits as an integer, zero has place -1."""
    wide: tl.constexpr = bits.dtype == tl.int64
    mantissa: tl.constexpr = 52 if wide else 23
    bias: tl.constexpr = 1023 if wide else 127
    low = bits & ((1 << mantissa) - 1)
    subnormal = (low.to(tl.float64 if wide else tl.float32).to(bits.dtype, bitcast=True) >> mantissa) - bias
    biased = bits >> mantissa
    return tl.where(biased > 0, biased + (mantissa - 1), tl.where(bits > 0, subnormal, -1)).to(tl.int32)


@triton.jit
def _one_bit(place, WINDOW: tl.constexpr):
    """Words with one bit set, at the place in the window, or the last for what lies outside."""
    word_type: tl.constexpr = tl.int64 if WINDOW == 64 else tl.int32
    return tl.full(place.shape, 1, word_type) << tl.minimum(place, WINDOW - 1).to(word_type)


@triton.jit
def _rotated(bits, exponent):
    """As `_one_bit` in windows of 32 binades from `exponent` on, for magnitudes of float32 inside them, and zeros.

    A rotation compares nothing. It takes exponents modulo 32; a power of two first moves the window's first one to 1,
    modulo 32, and leaves zeros, which become the last bit.
    """
    scale = ((127 - ((exponent - 1) & 31)) << 23).to(tl.float32, bitcast=True)
    turn = (bits.to(tl.float32, bitcast=True) * scale).to(tl.uint32, bitcast=True) >> 23
    last = tl.full(bits.shape, 1 << 31, tl.uint32)
    return ((last << (turn & 31)) | (last >> ((0 - turn) & 31))).to(tl.int32, bitcast=True)


@triton.jit
def _count(
    values,
    other,
    numel,
    low,
    EXACT: tl.constexpr,
    SUBTRACT: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
):
    """(digits, largest, smallest less one, squares) of `numel` values; digits are of places from `low` on.

    EXACT takes any values and leaves non-finite ones out of the largest and the squares; without it neither
    subnormals nor they may be among the values, which the largest and smallest bits tell.
    """
    wide: tl.constexpr = values.dtype.element_ty == tl.float64
    mantissa: tl.constexpr = 52 if wide else 23
    infinity: tl.constexpr = (0x7FF << 52) if wide else (0xFF << 23)
    highest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if wide else 0x7FFFFFFF
    bits_type: tl.constexpr = tl.int64 if wide else tl.int32
    unsigned: tl.constexpr = tl.uint64 if wide else tl.uint32
    threads: tl.constexpr = TILE // EACH
    zero = tl.zeros([threads, 1], tl.int64 if WINDOW == 64 else tl.int32)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    largest = tl.zeros([threads], bits_type)
    smallest = tl.full([threads], highest, bits_type).to(unsigned)
    squares = tl.zeros([threads], tl.float64)
    for start in range(0, numel, TILE):
        bits = _tile(values, other, start, numel, SUBTRACT, TILE)
        smallest = tl.minimum(smallest, tl.min((bits - 1).to(unsigned), 1))  # zero's wraps round
        exponent = low - (mantissa - 1)
        if EXACT:
            words = _one_bit((_place(bits) - low).to(tl.uint32), WINDOW)
            bits = tl.where(bits < infinity, bits, 0)
        elif WINDOW == 32 and not wide:
            words = _rotated(bits, exponent)
        else:
            place = (bits - (exponent.to(bits_type) << mantissa)).to(unsigned) >> mantissa
            words = _one_bit(place.to(tl.uint32), WINDOW)
        largest = tl.maximum(largest, tl.max(bits, 1))
        value = bits.to(tl.float64 if wide else tl.float32, bitcast=True).to(tl.float64)
        squares += tl.sum(value * value, 1)
        left, right = _halves(words)
        d0, d1, d2, carry = _add_eight(d0, d1, d2, left)
        d0, d1, d2, also = _add_eight(d0, d1, d2, right)
        d3, carry = _add(d3, carry, also)
        d4, carry = d4 ^ carry, d4 & carry
        d5, carry = d5 ^ carry, d5 & carry
        d6, carry = d6 ^ carry, d6 & carry
        d7, carry = d7 ^ carry, d7 & carry
        d8 ^= carry
    return (d0, d1, d2, d3, d4, d5, d6, d7, d8), largest, smallest, squares


@triton.jit
def _publish(digits, counts, WINDOW: tl.constexpr):
    """Add what the digits say to `counts`: fields of 16 bits are summed together."""
    fields: tl.constexpr = 0x0001000100010001 if WINDOW == 64 else 0x00010001
    place = tl.arange(0, 16)
    shift = place[None, :].to(digits[0].dtype)
    packed = (digits[0] >> shift) & fields
    for i in tl.static_range(1, 9):
        packed += ((digits[i] >> shift) & fields) << i
    total = tl.sum(packed, 0)
    for field in tl.static_range(WINDOW // 16):
        count = ((total >> (16 * field)) & 0xFFFF).to(tl.int64)
        bins = place + 16 * field
        tl.atomic_add(counts + bins, count, mask=(count > 0) & (bins < WINDOW - 1), sem="relaxed")


@triton.jit
def count_stretch(
    values,
    other,
    row,
    numel,
    SUBTRACT: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADROOM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Add `numel` values, at most MAX_STRETCH in MAX_TILES tiles, to a row."""
    wide: tl.constexpr = values.dtype.element_ty == tl.float64
    mantissa: tl.constexpr = 52 if wide else 23
    bias: tl.constexpr = 1023 if wide else 127
    infinity: tl.constexpr = (0x7FF << 52) if wide else (0xFF << 23)
    highest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if wide else 0x7FFFFFFF
    first = _tile(values, other, 0, numel, SUBTRACT, TILE)
    peak = tl.max(tl.max(tl.where(first < infinity, first, 0), 1), 0)
    about = tl.where(peak > 0, _place(peak), bias + mantissa - 1)
    low = tl.maximum(about + HEADROOM - (WINDOW - 2), mantissa)
    digits, largest, smallest, squares = _count(values, other, numel, low, False, SUBTRACT, WINDOW, TILE)
    top = tl.max(largest, 0)
    least = tl.min(smallest, 0).to(top.dtype)
    bottom = tl.where(least < highest, _place(least + 1), low)
    if (top < infinity) & (_place(top) < low + WINDOW - 1) & (bottom >= low):
        _publish(digits, row + _COUNTS + low, WINDOW)
    else:
        for place in range(bottom, _place(top) + 1, 63):
            more, largest, smallest, squares = _count(values, other, numel, place, True, SUBTRACT, 64, TILE)
            _publish(more, row + _COUNTS + place, 64)
        top = tl.max(largest, 0)
    tl.atomic_max(row + _AMAX, top.to(tl.int64), sem="relaxed")
    tl.atomic_max(row + _PEAK, top.to(tl.int64), sem="relaxed")
    tl.atomic_min(row + _SMALLEST, least.to(tl.int64), sem="relaxed")
    sums = row.to(tl.pointer_type(tl.float64), bitcast=True)
    tl.atomic_add(sums + _SUM_SQUARES, tl.sum(squares, 0), sem="relaxed")
