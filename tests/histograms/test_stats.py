"""What the histogram says of a format, beside what torch's casts do to the very values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.formats import FORMATS, Format
from precaudit.histograms import observe
from precaudit.model import Exponents, TensorStats

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
NARROW = [pytest.param(FORMATS[name], dtype, id=name) for name, dtype in DTYPES.items()]


def overflows(values: torch.Tensor, target: Format, dtype: torch.dtype) -> torch.Tensor:
    """Which values the format's rounding takes past its largest.

    Looked at 2**8 lower for 8 bits, because casts to those saturate in some torch releases.
    """
    down = 2.0**-8 if target.storage_bits == 8 else 1.0
    near = values.abs().double().clamp(2.0 ** (target.exponent_max - 1), 2.0 ** (target.exponent_max + 1))
    rounded = (near * down).to(dtype).double() / down
    return rounded > target.maximum


def flushes(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (values.to(dtype).double() == 0) & (values != 0)


def spread(target: Format, centre: str, numel: int = 50_000, width: float = 3.0) -> torch.Tensor:
    """Values around one end of the format's range, or inside it."""
    ends = {"bottom": math.log2(target.flush_threshold), "top": math.log2(target.maximum), "inside": 0.0}
    generator = torch.Generator().manual_seed(1)
    exponents = torch.empty(numel, dtype=torch.float64).normal_(ends[centre], width, generator=generator)
    return torch.exp2(exponents.clamp(-148, 127.9)).float() * (1 - 2 * (torch.arange(numel) % 2))


@pytest.mark.parametrize("centre", ["bottom", "top", "inside"])
@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_underflow_is_what_casts_flush(target: Format, dtype: torch.dtype, centre: str):
    values = spread(target, centre)
    values = values[values.abs() != target.flush_threshold]  # a tie, which its binade does not share
    assert observe(values).underflow_rate(target) == flushes(values, dtype).double().mean().item()


@pytest.mark.parametrize("centre", ["bottom", "top", "inside"])
@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_overflow_is_what_rounds_past_the_largest(target: Format, dtype: torch.dtype, centre: str):
    values = spread(target, centre)
    rate, real = observe(values).overflow_rate(target), overflows(values, target, dtype).double().mean().item()
    assert rate == pytest.approx(real, abs=3e-3)
    assert (rate == 0) == (real == 0)


@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_overflow_is_exact_without_values_in_the_top_binade(target: Format, dtype: torch.dtype):
    values = spread(target, "top")
    values = values[(values.abs().log2().floor() != target.exponent_max)]
    assert observe(values).overflow_rate(target) == overflows(values, target, dtype).double().mean().item()


@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_largest_value_does_not_overflow_and_the_next_does(target: Format, dtype: torch.dtype):
    fits = torch.tensor([target.maximum, 1.0, 0.0], dtype=torch.float64)
    over = torch.tensor([target.overflow_threshold * (1 + 2.0**-20), 1.0, 0.0], dtype=torch.float64)
    assert observe(fits).overflow_rate(target) == 0.0
    assert observe(over).overflow_rate(target) == pytest.approx(1 / 3)


@pytest.mark.parametrize("smaller", [[], [0.0, 0.0]])
@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_a_constant_past_the_largest_overflows_whole(target: Format, dtype: torch.dtype, smaller: list[float]):
    """As a mask's fill value: nothing says then that the values below it in its binade are any."""
    constant = min(target.overflow_threshold * (1 + 2.0**-9), FORMATS["float32"].maximum)
    values = torch.tensor([constant] * 6 + smaller)
    assert observe(values).overflow_rate(target) == overflows(values, target, dtype).double().mean().item() > 0.7


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-6e5, 6e5, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32), min_size=1, max_size=50),
    st.sampled_from(sorted(DTYPES)),
)
def test_rates_are_within_what_the_histogram_can_tell(numbers: list[float], name: str):
    target, values = FORMATS[name], torch.tensor(numbers)
    stats = observe(values)
    bins = dict(stats.exponents.items())
    over, flushed = overflows(values, target, DTYPES[name]).sum(), flushes(values, DTYPES[name]).sum()
    edge = int(math.log2(target.flush_threshold))
    assert abs(stats.overflow_rate(target) * len(numbers) - over) <= bins.get(target.exponent_max, 0) + 1e-9
    assert abs(stats.underflow_rate(target) * len(numbers) - flushed) <= bins.get(edge, 0) + 1e-9
    assert (stats.underflow_rate(target) > 0) == (flushed > 0)
    assert (stats.overflow_rate(target) > 0) == (over > 0)


@pytest.mark.parametrize("width", [1.0, 4.0])
@pytest.mark.parametrize(("target", "dtype"), NARROW)
def test_flushed_energy_is_that_of_what_casts_flush(target: Format, dtype: torch.dtype, width: float):
    values = spread(target, "bottom", width=width).double()
    squares = (values / values.abs().max()).square()
    real = (squares[flushes(values, dtype)].sum() / squares.sum()).item()
    assert observe(values).flushed_energy(target) == pytest.approx(real, rel=0.3, abs=1e-12)


@pytest.mark.parametrize("target", FORMATS.values(), ids=str)
def test_flushed_energy_of_all_and_of_nothing(target: Format):
    for shares in ([1 / 3, 1 / 5], [1.0, 1.0, 1.0], [1 / 3, 1.0, 1.0]):
        gone = observe(torch.tensor(shares, dtype=torch.float64) * target.flush_threshold)
        assert gone.flushed_energy(target) == gone.underflow_rate(target) == 1.0
    for kept in (torch.zeros(3), torch.empty(0), torch.ones(3), torch.tensor([float("nan"), float("inf")])):
        assert observe(kept).flushed_energy(target) == observe(kept).underflow_rate(target) == 0.0
        assert observe(kept).overflow_rate(target) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=20))
def test_shares_are_shares_for_any_float64(numbers: list[float]):
    stats = observe(torch.tensor(numbers, dtype=torch.float64))
    for target in FORMATS.values():
        for share in (stats.overflow_rate(target), stats.underflow_rate(target), stats.flushed_energy(target)):
            assert 0.0 <= share <= 1.0


@pytest.mark.parametrize("k", [-30, -4, 7])
def test_a_loss_scale_shifts_the_histogram(k: int):
    values = spread(FORMATS["float16"], "bottom", numel=2000).double()
    scaled, shifted = observe(values * 2.0**k), observe(values).shift(k)
    assert (scaled.exponents, scaled.amax, scaled.amin_nonzero) == (
        shifted.exponents,
        shifted.amax,
        shifted.amin_nonzero,
    )
    assert scaled.sum_squares == pytest.approx(shifted.sum_squares)


def test_shifting_past_the_range_of_floats_is_no_error():
    stats = TensorStats(1, 1.0, 1.0, 1.0, exponents=Exponents(0, (1,)))
    assert stats.shift(2000).amax == math.inf
    assert stats.shift(-2000).amax == 0.0
    assert stats.shift(700).shift(-700).exponents == stats.exponents
