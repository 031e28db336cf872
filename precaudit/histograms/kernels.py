"""The CPU pass, compiled by numba: works on bit patterns, holds no Python object, releases the GIL.

Values are taken in blocks that stay in the L1 cache. A first loop, which LLVM vectorises, reads the block
once and yields the extremes, the sum of squares and one byte of exponent a value. The bytes are then counted:
by comparing 64 at a time with each exponent between the block's extremes when those lie close together
(nearly always), else one by one into interleaved tables, so that equal neighbours do not wait for each other.
Half-precision values are widened to float32 block by block, which is exact.
"""

# numba infers the types that these functions take; annotations would be about Python objects.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, PEAK, SMALLEST

SINGLE, BRAIN, HALF, DIFFERENCE = range(4)

BLOCK = 4096
LANES = 64
TABLES = 8
# Comparing costs by the exponent and counting by the value: they break even near this many exponents.
NARROW = 24

MANTISSA32, INFINITY32, NONFINITE32 = FLOAT32.mantissa, np.uint32(FLOAT32.infinity), 2**FLOAT32.exponent_bits - 1
MANTISSA64, INFINITY64 = FLOAT64.mantissa, np.uint64(FLOAT64.infinity)
WIDTH32, WIDTH64 = FLOAT32.width, FLOAT64.width
# Counts by biased exponent: the first, of subnormals and zeros, is split up elsewhere.
BIASED32, BIASED64 = COUNTS + FLOAT32.mantissa - 1, COUNTS + FLOAT64.mantissa - 1


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled code is kept on disk where numba finds a folder to write to."""
    fastmath = {"reassoc", "contract"}  # lets the sum of squares use vectors
    try:
        return njit(nogil=True, cache=True, fastmath=fastmath)(function)
    except RuntimeError:
        return njit(nogil=True, fastmath=fastmath)(function)


@intrinsic
def _pointer(_context, address):
    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _count_equal(_context, address, byte):
    """How many of the 64 bytes at `address` equal `byte`: a vector comparison and a population count."""

    def generate(_context, builder, _signature, arguments):
        vector = ir.VectorType(ir.IntType(8), LANES)
        block = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()))
        block.align = 1
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, arguments[1], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        equal = builder.icmp_unsigned("==", block, builder.shuffle_vector(first, undefined, everywhere))
        return builder.ctpop(builder.bitcast(equal, ir.IntType(LANES)))

    return types.int64(types.int64, types.uint8), generate


@_compiled
def _scan(bits, values, exponents, unsigned, narrow, infinity, mantissa):
    """Largest finite, smallest non-zero less one and largest bits, and the finite values' sum of squares."""
    sign = unsigned(unsigned(-1) >> unsigned(1))
    largest, smallest, top, squares = unsigned(0), unsigned(-1), unsigned(0), 0.0
    for i in range(bits.size):
        magnitude = unsigned(bits[i] & sign)
        finite = magnitude < infinity
        value = np.float64(values[i]) if finite else 0.0
        squares += value * value
        largest = max(largest, magnitude if finite else unsigned(0))
        smallest = min(smallest, unsigned(magnitude - unsigned(1)))  # no value's is below that of zero, wrapped round
        top = max(top, magnitude)
        exponents[i] = narrow(magnitude >> mantissa)
    return np.int64(largest), np.int64(min(smallest, sign)), np.int64(top), squares


@_compiled
def _count_subnormals(bits, unsigned, mantissa, counts):
    for i in range(bits.size):
        magnitude = np.int64(bits[i] & unsigned(unsigned(-1) >> unsigned(1)))
        if 0 < magnitude < (np.int64(1) << mantissa):
            binade = 0
            while magnitude >> (binade + 1):
                binade += 1
            counts[binade] += 1


@_compiled
def _compare(exponents, size, low, high, counts):
    start = exponents.ctypes.data
    for exponent in range(low, high + 1):
        total = 0
        for i in range(0, size, LANES):
            total += _count_equal(start + i, np.uint8(exponent))
        counts[exponent] += total


@_compiled
def _scatter(exponents, size, tables):
    for i in range(0, size, TABLES):
        for j in range(TABLES):
            tables[j, exponents[i + j]] += np.uint32(1)


@_compiled
def _count_single(bits, values, exponents, tables, state, total):
    """One block of float32; whether it was counted into the tables."""
    largest, smallest, top, squares = _scan(
        bits, values, exponents, np.uint32, np.uint8, INFINITY32, np.uint32(MANTISSA32)
    )
    total[0] += squares
    state[AMAX], state[PEAK] = max(state[AMAX], largest), max(state[PEAK], largest)
    state[SMALLEST] = min(state[SMALLEST], smallest)
    low, high = (smallest + 1) >> MANTISSA32, largest >> MANTISSA32
    if low == 0:
        _count_subnormals(bits, np.uint32, MANTISSA32, state[COUNTS:])
        low = 1
    size = -(-bits.size // LANES) * LANES
    exponents[bits.size : size] = 0
    if high - low >= NARROW:
        _scatter(exponents, size, tables)
        return True
    _compare(exponents, size, low, high, state[BIASED32:])
    if top >= INFINITY32:
        _compare(exponents, size, NONFINITE32, NONFINITE32, state[BIASED32:])
    return False


@_compiled
def _widen_brain(source, bits):
    for i in range(source.size):
        bits[i] = np.uint32(source[i]) << np.uint32(16)


@_compiled
def _widen_half(source, bits, values):
    """Through integers, so that a thread that flushes subnormals gets them right as well."""
    for i in range(source.size):
        magnitude = np.uint32(source[i]) & np.uint32(0x7FFF)
        rebiased = np.uint32((magnitude << np.uint32(13)) + np.uint32(112 << 23))
        bits[i] = rebiased if magnitude < np.uint32(0x7C00) else INFINITY32
    for i in range(source.size):
        if np.uint32(source[i]) & np.uint32(0x7C00) == 0:
            values[i] = np.float32(np.int32(source[i]) & 0x3FF) * np.float32(2.0**-24)


@_compiled
def _subtract(new, old, values):
    for i in range(new.size):
        values[i] = new[i] - old[i]


@_compiled
def accumulate_single(source, address, other, numel, row, squares):
    """Add `numel` values at `address` (less those at `other`) to a row; how many of them are non-finite.

    `row` and `squares`, where the sum of squares is added, are addresses too: arrays would cost a call more.
    """
    state, total = carray(_pointer(row), WIDTH32, np.int64), carray(_pointer(squares), 1, np.float64)
    exponents = np.empty(BLOCK, np.uint8)
    tables = np.zeros((TABLES, NONFINITE32 + 1), np.uint32)
    words = np.empty(BLOCK, np.uint32)
    floats = words.view(np.float32)
    before, scattered = state[WIDTH32 - 1], False
    for start in range(0, numel, BLOCK):
        size = min(numel - start, BLOCK)
        bits, values = words[:size], floats[:size]
        if source == SINGLE:
            bits = carray(_pointer(address + 4 * start), size, np.uint32)
            values = carray(_pointer(address + 4 * start), size, np.float32)
        elif source == BRAIN:
            _widen_brain(carray(_pointer(address + 2 * start), size, np.uint16), bits)
        elif source == HALF:
            _widen_half(carray(_pointer(address + 2 * start), size, np.uint16), bits, values)
        else:
            new = carray(_pointer(address + 4 * start), size, np.float32)
            _subtract(new, carray(_pointer(other + 4 * start), size, np.float32), values)
        scattered |= _count_single(bits, values, exponents, tables, state, total)
    if scattered:
        for table in range(TABLES):
            for exponent in range(1, NONFINITE32 + 1):
                state[BIASED32 + exponent] += tables[table, exponent]
    return state[WIDTH32 - 1] - before


@_compiled
def _count_double(bits, values, exponents, state, total):
    """One block of float64: rare enough in training to be counted one by one."""
    largest, smallest, _, squares = _scan(
        bits, values, exponents, np.uint64, np.uint16, INFINITY64, np.uint64(MANTISSA64)
    )
    total[0] += squares
    state[AMAX], state[PEAK] = max(state[AMAX], largest), max(state[PEAK], largest)
    state[SMALLEST] = min(state[SMALLEST], smallest)
    subnormals = state[BIASED64]  # the place where exponent 0 counts too
    for i in range(bits.size):
        state[BIASED64 + exponents[i]] += 1
    state[BIASED64] = subnormals
    if smallest + 1 < (np.int64(1) << MANTISSA64):
        _count_subnormals(bits, np.uint64, MANTISSA64, state[COUNTS:])


@_compiled
def accumulate_double(address, numel, row, squares):
    """As `accumulate_single`, for float64."""
    state, total = carray(_pointer(row), WIDTH64, np.int64), carray(_pointer(squares), 1, np.float64)
    exponents = np.empty(BLOCK, np.uint16)
    before = state[WIDTH64 - 1]
    for start in range(0, numel, BLOCK):
        size = min(numel - start, BLOCK)
        bits = carray(_pointer(address + 8 * start), size, np.uint64)
        values = carray(_pointer(address + 8 * start), size, np.float64)
        _count_double(bits, values, exponents, state, total)
    return state[WIDTH64 - 1] - before
