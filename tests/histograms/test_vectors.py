"""The vector loops of the CPU pass, beside numpy."""

import numpy as np
import pytest
from numba import njit

from precaudit.histograms.kernels import BLOCK
from precaudit.histograms.vectors import MOST, STRIDE, count_equal, scan


@njit
def scanned(values, exponents):
    return scan(values.ctypes.data, exponents.ctypes.data, values.size)


@njit
def counted(data, byte):
    return count_equal(data.ctypes.data, np.uint8(byte), data.size)


def numbers(seed: int, size: int) -> np.ndarray:
    """Any bit patterns but infinities and nan, some of them zeros of either sign and subnormals."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**32, size, dtype=np.uint32)
    bits[(bits >> 23) & 255 == 255] &= 0x807FFFFF
    bits[generator.random(size) < 0.1] &= 0x80000000
    return bits.view(np.float32)


def test_blocks_suit_the_loops():
    assert BLOCK % STRIDE == 0
    assert BLOCK <= MOST


@pytest.mark.parametrize("strides", [1, 2, 32])
@pytest.mark.parametrize("seed", range(5))
def test_scan_sees_every_value(seed, strides):
    values = numbers(seed, strides * STRIDE)
    if seed == 0:
        values = np.float32(1e-3) * np.random.default_rng(0).standard_normal(strides * STRIDE).astype(np.float32)
    exponents = np.empty(values.size, np.uint8)
    top, smallest, squares = scanned(values, exponents)
    bits = values.view(np.uint32) & 0x7FFFFFFF
    assert top == bits.max()
    assert smallest == bits[bits > 0].min() - 1
    assert (exponents == bits >> 23).all()
    assert squares == pytest.approx(np.square(values.astype(np.float64)).sum(), rel=1e-13)


def test_scan_of_zeros_and_of_what_is_not_finite():
    zeros = np.zeros(STRIDE, np.float32)
    assert scanned(zeros, np.empty(STRIDE, np.uint8)) == (0, 2**32 - 1, 0.0)
    zeros[7] = -np.inf
    top, smallest, _ = scanned(zeros, np.empty(STRIDE, np.uint8))
    assert (top, smallest) == (0x7F800000, 0x7F800000 - 1)


@pytest.mark.parametrize("size", [STRIDE, 5 * STRIDE, MOST])
def test_counts_of_bytes(size):
    data = np.random.default_rng(size).integers(0, 4, size, dtype=np.uint8)
    for byte in range(5):
        assert counted(data, byte) == (data == byte).sum()
    assert counted(np.full(size, 200, np.uint8), 200) == size
