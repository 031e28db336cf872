"""The CPU pass, compiled by numba: works on bit patterns, holds no Python object, releases the GIL.

Values are taken in blocks that stay in the L1 cache. A first loop reads the block once and yields the extremes,
the sum of squares and one byte of exponent a value. The bytes are then counted: by comparing them with each
exponent between the block's extremes when those lie close together (nearly always), else one by one into
interleaved tables, so that equal neighbours do not wait for each other. Half-precision values are widened to
float32 block by block, which is exact; blocks that aren't whole vectors are filled up with zeros.
"""

# numba infers the types that these functions take; annotations would be about Python objects.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, NOTHING, PEAK, SMALLEST
from precaudit.histograms.vectors import STRIDE, count_equal, fetch_add, scan

SINGLE, BRAIN, HALF, DIFFERENCE, DOUBLE = range(5)

BLOCK = 4096
CHUNK = 1 << 16  # what a thread takes at a time
TABLES = 8
# Comparing costs by the exponent and counting by the value: they break even near this many exponents.
NARROW = 40

MANTISSA32, INFINITY32, NONFINITE32 = FLOAT32.mantissa, np.uint32(FLOAT32.infinity), 2**FLOAT32.exponent_bits - 1
MANTISSA64, INFINITY64 = FLOAT64.mantissa, np.uint64(FLOAT64.infinity)
WIDTH32, WIDTH64 = FLOAT32.width, FLOAT64.width
# Counts by biased exponent: the first, of subnormals and zeros, is split up elsewhere.
BIASED32, BIASED64 = COUNTS + FLOAT32.mantissa - 1, COUNTS + FLOAT64.mantissa - 1
# A task for several threads: 64-bit integers, then the address of a row for each member of the team.
SOURCE, FIRST, OTHER, NUMEL, ITEMSIZE, SQUARES, NEXT, MEMBERS, FOUND, ROWS = range(10)


def _made(compiler: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compiled code is kept on disk where numba finds a folder to write to."""
    try:
        return compiler(cache=True)(function)
    except RuntimeError:
        return compiler()(function)


def _compiled(function: Callable[..., Any]) -> Any:
    """`fastmath` lets the sum of squares use vectors."""
    return _made(partial(njit, nogil=True, fastmath={"reassoc", "contract"}), function)


def _callable_from_c(function: Callable[..., Any]) -> Any:
    """With an address of its own, for a library that starts threads."""
    return _made(partial(cfunc, types.void(types.int64)), function)


@intrinsic
def _pointer(_context, address):
    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@_compiled
def _finite(bits, values, unsigned, infinity):
    """Largest finite bits and the finite values' sum of squares."""
    largest, squares = unsigned(0), 0.0
    for i in range(bits.size):
        magnitude = unsigned(bits[i] & unsigned(unsigned(-1) >> unsigned(1)))
        finite = magnitude < infinity
        value = np.float64(values[i]) if finite else 0.0
        squares += value * value
        largest = max(largest, magnitude if finite else unsigned(0))
    return np.int64(largest), squares


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
    for exponent in range(low, high + 1):
        counts[exponent] += count_equal(exponents.ctypes.data, np.uint8(exponent), size)


@_compiled
def _scatter(exponents, size, tables):
    for i in range(0, size, TABLES):
        for j in range(TABLES):
            tables[j, exponents[i + j]] += np.uint32(1)


@_compiled
def _count_single(bits, values, exponents, tables, state, total):
    """One block of float32, whole strides of it; whether it was counted into the tables."""
    top, smallest, squares = scan(bits.ctypes.data, exponents.ctypes.data, bits.size)
    largest = top
    if top >= INFINITY32:
        largest, squares = _finite(bits, values, np.uint32, INFINITY32)
    total[0] += squares
    state[AMAX], state[PEAK] = max(state[AMAX], largest), max(state[PEAK], largest)
    state[SMALLEST] = min(state[SMALLEST], smallest)
    low, high = (smallest + 1) >> MANTISSA32, largest >> MANTISSA32
    if low == 0:
        _count_subnormals(bits, np.uint32, MANTISSA32, state[COUNTS:])
        low = 1
    if high - low >= NARROW:
        _scatter(exponents, bits.size, tables)
        return True
    _compare(exponents, bits.size, low, high, state[BIASED32:])
    if top >= INFINITY32:
        _compare(exponents, bits.size, NONFINITE32, NONFINITE32, state[BIASED32:])
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
def _count_double(bits, values, exponents, state, total):
    """One block of float64: rare enough in training to be counted one by one."""
    largest, squares = _finite(bits, values, np.uint64, INFINITY64)
    smallest = np.int64(NOTHING)
    for i in range(bits.size):
        magnitude = np.int64(bits[i] & np.uint64(NOTHING))
        smallest = min(smallest, magnitude - 1 if magnitude else np.int64(NOTHING))
        exponents[i] = magnitude >> MANTISSA64
    total[0] += squares
    state[AMAX], state[PEAK] = max(state[AMAX], largest), max(state[PEAK], largest)
    state[SMALLEST] = min(state[SMALLEST], smallest)
    subnormals = state[BIASED64]  # the place where exponent 0 counts too
    for i in range(bits.size):
        state[BIASED64 + exponents[i]] += 1
    state[BIASED64] = subnormals
    if smallest < (np.int64(1) << MANTISSA64) - 1:
        _count_subnormals(bits, np.uint64, MANTISSA64, state[COUNTS:])


@_compiled
def _accumulate_double(address, numel, row, squares):
    state, total = carray(_pointer(row), WIDTH64, np.int64), carray(_pointer(squares), 1, np.float64)
    exponents = np.empty(BLOCK, np.uint16)
    before = state[WIDTH64 - 1]
    for start in range(0, numel, BLOCK):
        size = min(numel - start, BLOCK)
        bits = carray(_pointer(address + 8 * start), size, np.uint64)
        values = carray(_pointer(address + 8 * start), size, np.float64)
        _count_double(bits, values, exponents, state, total)
    return state[WIDTH64 - 1] - before


@_compiled
def _accumulate_single(source, address, other, numel, row, squares):
    state, total = carray(_pointer(row), WIDTH32, np.int64), carray(_pointer(squares), 1, np.float64)
    exponents = np.empty(BLOCK, np.uint8)
    tables = np.zeros((TABLES, NONFINITE32 + 1), np.uint32)
    words = np.empty(BLOCK, np.uint32)
    floats = words.view(np.float32)
    before, scattered = state[WIDTH32 - 1], False
    for start in range(0, numel, BLOCK):
        size = min(numel - start, BLOCK)
        padded = -(-size // STRIDE) * STRIDE
        bits, values = words[:padded], floats[:padded]
        bits[size:] = 0
        if source == SINGLE and size == padded:
            bits = carray(_pointer(address + 4 * start), size, np.uint32)
            values = carray(_pointer(address + 4 * start), size, np.float32)
        elif source == SINGLE:
            bits[:size] = carray(_pointer(address + 4 * start), size, np.uint32)
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
def accumulate(source, address, other, numel, row, squares):
    """Add `numel` values at `address` (less those at `other`) to a row; how many of them are non-finite.

    `row` and `squares`, where the sum of squares is added, are addresses too: arrays would cost a call more.
    """
    if source == DOUBLE:
        return _accumulate_double(address, numel, row, squares)
    return _accumulate_single(source, address, other, numel, row, squares)


@_callable_from_c
def share(address):
    """One member of a team: takes chunks of the task at this address until none is left, into a row of its own."""
    task = carray(_pointer(address), ROWS, np.int64)
    member = fetch_add(address + 8 * MEMBERS, 1)
    row = carray(_pointer(address + 8 * (ROWS + member)), 1, np.int64)[0]
    width, nonfinite = task[ITEMSIZE], 0
    while True:
        start = fetch_add(address + 8 * NEXT, CHUNK)
        if start >= task[NUMEL]:
            break
        size, offset = min(CHUNK, task[NUMEL] - start), start * width
        squares = task[SQUARES] + 8 * (start // CHUNK)
        nonfinite += accumulate(task[SOURCE], task[FIRST] + offset, task[OTHER] + offset, size, row, squares)
    fetch_add(address + 8 * FOUND, nonfinite)
