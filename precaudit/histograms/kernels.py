"""The CPU pass, compiled by numba: works on bit patterns, holds no Python object, releases the GIL.

A block is read once: that yields the extremes, the sum of squares, and how many values have each exponent modulo
32. Nearly always a block's exponents span less than that, so its extremes tell which exponents those were; else
they are counted one by one, into interleaved tables, so that equal neighbours do not wait for each other. Values
that are zero, subnormal or non-finite are looked at again. Half-precision values are widened to float32 block by
block, which is exact; blocks that aren't whole turns are filled up with zeros.
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

from precaudit.histograms.layout import AMAX, COUNTS, FLOAT32, FLOAT64, NOTHING, PEAK, SMALLEST, SUM_SQUARES
from precaudit.histograms.vectors import (
    ALIGNMENT,
    PLACES,
    STRIDE,
    call_team,
    fetch_add,
    tally,
    tally_copy,
    tally_difference,
)

SINGLE, BRAIN, HALF, DIFFERENCE, COPIED, DOUBLE = range(6)
ITEMSIZES = (4, 2, 2, 4, 4, 8)  # of the sources above

BLOCK = 8192
CHUNK = 1 << 15  # what a thread takes at a time
TABLES = 8

MANTISSA32, INFINITY32, NONFINITE32 = FLOAT32.mantissa, np.uint32(FLOAT32.infinity), 2**FLOAT32.exponent_bits - 1
NORMAL32, ANYTHING32 = 1 << FLOAT32.mantissa, 2**31 - 1
MANTISSA64, INFINITY64 = FLOAT64.mantissa, np.uint64(FLOAT64.infinity)
WIDTH32, WIDTH64 = FLOAT32.width, FLOAT64.width
# Counts by biased exponent: the first, of subnormals and zeros, is split up elsewhere.
BIASED32, BIASED64 = COUNTS + FLOAT32.mantissa - 1, COUNTS + FLOAT64.mantissa - 1
# A task for several threads, in 64-bit integers; SQUARES and ROWS are addresses.
SOURCE, FIRST, OTHER, NUMEL, SQUARES, ROWS, NEXT, MEMBERS, FOUND, TASK = range(10)


def _made(compiler: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Cache compiled code on disk where numba finds a writable folder."""
    try:
        return compiler(cache=True)(function)
    except RuntimeError:
        return compiler()(function)


def _compiled(function: Callable[..., Any]) -> Any:
    """`fastmath` lets the sum of squares use vectors."""
    return _made(partial(njit, nogil=True, fastmath={"reassoc", "contract"}), function)


def _callable_from_c(function: Callable[..., Any]) -> Any:
    """Compile a C callback, for a library that starts threads."""
    return _made(partial(cfunc, types.void(types.int64)), function)


@intrinsic
def _pointer(_context, address):
    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@_compiled
def _finite(bits, values, unsigned, infinity):
    """The largest finite bits, the number of non-finite values, and the sum of squares of the others."""
    largest, nonfinite, squares = unsigned(0), 0, 0.0
    for i in range(bits.size):
        magnitude = unsigned(bits[i] & unsigned(unsigned(-1) >> unsigned(1)))
        finite = magnitude < infinity
        value = np.float64(values[i]) if finite else 0.0
        squares += value * value
        largest = max(largest, magnitude if finite else unsigned(0))
        nonfinite += not finite
    return np.int64(largest), nonfinite, squares


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
def _scatter(bits, tables):
    for i in range(0, bits.size, TABLES):
        for j in range(TABLES):
            tables[j, (bits[i + j] >> MANTISSA32) & NONFINITE32] += np.uint32(1)


@_compiled
def _below_normal(bits):
    """The smallest non-zero bits minus one, the smallest normal ones, and the number of zero or subnormal values."""
    smallest, normal, below = np.uint32(ANYTHING32), np.uint32(ANYTHING32), np.uint32(0)
    for i in range(bits.size):
        magnitude = bits[i] & np.uint32(ANYTHING32)
        smallest = min(smallest, np.uint32(magnitude - np.uint32(1)))
        normal = min(normal, magnitude if magnitude >= NORMAL32 else np.uint32(ANYTHING32))
        below += np.uint32(magnitude < NORMAL32)
    return np.int64(smallest), np.int64(normal), np.int64(below)


@_compiled
def _settle(found, bits, values, places, tables, state, total):
    """Add the results for one block of float32 to the row; returns whether it had to be counted value by value."""
    top, least, squares = found
    largest, nonfinite = top, 0
    if top >= INFINITY32:
        largest, nonfinite, squares = _finite(bits, values, np.uint32, INFINITY32)
    smallest, normal, below = least - 1, least, 0
    if least < NORMAL32:
        smallest, normal, below = _below_normal(bits)
    total[0] += squares
    state[AMAX], state[PEAK] = max(state[AMAX], largest), max(state[PEAK], largest)
    state[SMALLEST] = min(state[SMALLEST], smallest)
    if smallest < NORMAL32 - 1:
        _count_subnormals(bits, np.uint32, MANTISSA32, state[COUNTS:])
    low, high = normal >> MANTISSA32, largest >> MANTISSA32
    if high - low >= PLACES:
        _scatter(bits, tables)
        return True
    places[0] -= below
    places[NONFINITE32 % PLACES] -= nonfinite
    for exponent in range(low, high + 1):
        state[BIASED32 + exponent] += places[exponent % PLACES]
    state[BIASED32 + NONFINITE32] += nonfinite
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
def _fill(source, address, other, bits, values, size):
    """Fill a block with values: widened, and padded with zeros."""
    bits[size:] = 0
    if source == BRAIN:
        _widen_brain(carray(_pointer(address), size, np.uint16), bits)
    elif source == HALF:
        _widen_half(carray(_pointer(address), size, np.uint16), bits, values)
    elif source == DIFFERENCE:
        new, old = carray(_pointer(address), size, np.float32), carray(_pointer(other), size, np.float32)
        _subtract(new, old, values)
    else:
        bits[:size] = carray(_pointer(address), size, np.uint32)
    if source == COPIED:
        carray(_pointer(other), size, np.uint32)[:] = bits[:size]


@_compiled
def _count_double(bits, values, exponents, state, total):
    """Add one block of float64, value by value, as it is rare in training."""
    largest, _, squares = _finite(bits, values, np.uint64, INFINITY64)
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
    places = np.empty(PLACES, np.int64)
    tables = np.zeros((TABLES, NONFINITE32 + 1), np.uint32)
    words = np.empty(BLOCK, np.uint32)
    floats = words.view(np.float32)
    before, scattered = state[WIDTH32 - 1], False
    for start in range(0, numel, BLOCK):
        size = min(numel - start, BLOCK)
        padded = -(-size // STRIDE) * STRIDE
        whole, first, second = size == padded, address + ITEMSIZES[source] * start, other + 4 * start
        bits, values = words[:padded], floats[:padded]
        if whole and (source == SINGLE or (source == COPIED and second % ALIGNMENT == 0)):
            bits = carray(_pointer(first), size, np.uint32)
            values = carray(_pointer(first), size, np.float32)
            if source == SINGLE:
                found = tally(first, size, places.ctypes.data)
            else:
                found = tally_copy(first, second, size, places.ctypes.data)
        elif whole and source == DIFFERENCE:
            found = tally_difference(first, second, words.ctypes.data, size, places.ctypes.data)
        else:
            _fill(source, first, second, bits, values, size)
            found = tally(words.ctypes.data, padded, places.ctypes.data)
        scattered |= _settle(found, bits, values, places, tables, state, total)
    if scattered:
        for table in range(TABLES):
            for exponent in range(1, NONFINITE32 + 1):
                state[BIASED32 + exponent] += tables[table, exponent]
    return state[WIDTH32 - 1] - before


@_compiled
def accumulate(source, address, other, numel, row, squares):
    """Add `numel` values at `address` to a row; returns how many are non-finite. Those at `other` are subtracted
    (`DIFFERENCE`) or overwritten by them (`COPIED`).

    `row` and `squares` (where the sum of squares is added) are addresses too, as passing arrays would slow down the
    call.
    """
    if source == DOUBLE:
        return _accumulate_double(address, numel, row, squares)
    return _accumulate_single(source, address, other, numel, row, squares)


@_compiled
def _take(address):
    """Process chunks of the task at this address until none is left, into the thread's own row."""
    task = carray(_pointer(address), TASK, np.int64)
    row = carray(_pointer(task[ROWS] + 8 * fetch_add(address + 8 * MEMBERS, 1)), 1, np.int64)[0]
    width, nonfinite = ITEMSIZES[task[SOURCE]], 0
    while True:
        start = fetch_add(address + 8 * NEXT, CHUNK)
        if start >= task[NUMEL]:
            break
        size, offset = min(CHUNK, task[NUMEL] - start), start * width
        squares = task[SQUARES] + 8 * (start // CHUNK)
        nonfinite += accumulate(task[SOURCE], task[FIRST] + offset, task[OTHER] + offset, size, row, squares)
    fetch_add(address + 8 * FOUND, nonfinite)


@_callable_from_c
def share(address):
    """One member of a team."""
    _take(address)


@_compiled
def accumulate_large(source, address, other, numel, rows, start, member, threads):
    """Like `accumulate`, for large tensors: chunk by chunk, each with its own sum of squares, so that the total depends
    on neither threads nor timing.

    `rows` is the address of the rows' addresses, one for each thread. With `start`, the address of `GOMP_parallel`, a
    team of threads runs `member`, the address of `share`.
    """
    squares = np.zeros(-(-numel // CHUNK))
    task = np.zeros(TASK, np.int64)
    task[SOURCE], task[FIRST], task[OTHER], task[NUMEL] = source, address, other, numel
    task[SQUARES], task[ROWS] = squares.ctypes.data, rows
    if start:
        call_team(start, member, task.ctypes.data, threads)
    else:
        _take(task.ctypes.data)
    first = carray(_pointer(rows), 1, np.int64)[0]
    carray(_pointer(first + 8 * SUM_SQUARES), 1, np.float64)[0] += squares.sum()
    return task[FOUND]
