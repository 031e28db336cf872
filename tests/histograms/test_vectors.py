"""The vector loop of the CPU pass, beside numpy."""

import numpy as np
import pytest
from numba import njit

from precaudit.histograms.kernels import BLOCK
from precaudit.histograms.vectors import MOST, PLACES, STRIDE, tally


@njit
def tallied(values, counts):
    return tally(values.ctypes.data, values.size, counts.ctypes.data)


def numbers(seed: int, size: int) -> np.ndarray:
    """Any bit patterns but infinities and nan, some of them zeros of either sign and subnormals."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**32, size, dtype=np.uint32)
    bits[(bits >> 23) & 255 == 255] &= 0x807FFFFF
    bits[generator.random(size) < 0.1] &= 0x80000000
    return bits.view(np.float32)


def counted(values: np.ndarray) -> np.ndarray:
    return np.bincount((values.view(np.uint32) >> 23) % PLACES, minlength=PLACES)


def test_blocks_suit_the_loop():
    assert BLOCK % STRIDE == 0
    assert BLOCK <= MOST


@pytest.mark.parametrize("size", [STRIDE, 2 * STRIDE, BLOCK, MOST // STRIDE * STRIDE])
@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_seen(seed, size):
    values, counts = numbers(seed, size), np.full(PLACES, -1)
    top, least, squares = tallied(values, counts)
    bits = values.view(np.uint32) & 0x7FFFFFFF
    assert (top, least) == (bits.max(), bits.min())
    assert squares == pytest.approx(np.square(values.astype(np.float64)).sum(), rel=1e-13)
    assert (counts == counted(values)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_exponents_near_each_other_are_the_only_ones_written(scale):
    values = np.float32(scale) * np.random.default_rng(0).uniform(1, 16, BLOCK).astype(np.float32)
    counts = np.full(PLACES, -1)
    tallied(values, counts)
    written = counts >= 0
    assert written.sum() <= 5
    assert (counts[written] == counted(values)[written]).all()
    assert counts[written].sum() == BLOCK


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3e38])
def test_a_lane_counts_a_whole_block_of_equal_values(value):
    counts = np.full(PLACES, -1)
    tallied(np.full(BLOCK, value, np.float32), counts)
    assert counts.max() == BLOCK
    assert (counts >= 0).sum() == 1


def test_what_is_not_finite_is_the_largest():
    values, counts = np.zeros(STRIDE, np.float32), np.zeros(PLACES, np.int64)
    values[7] = -np.inf
    top, least, _ = tallied(values, counts)
    assert (top, least) == (0x7F800000, 0)
    assert (counts[0], counts[255 % PLACES]) == (STRIDE - 1, 1)
