"""The formats' closed forms beside torch's own constants and casts."""

import pytest
import torch

from precaudit.errors import PrecauditError
from precaudit.formats import ALIASES, FORMATS, get_format, parse_formats

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
CAST = [pytest.param(FORMATS[name], dtype, id=name) for name, dtype in DTYPES.items()]


def cast(value, dtype):
    return torch.tensor(value, dtype=torch.float64).to(dtype).double().item()


def neighbours(value):
    value = torch.tensor(value, dtype=torch.float64)
    return (torch.nextafter(value, torch.tensor(way, dtype=torch.float64)).item() for way in (0.0, float("inf")))


@pytest.mark.parametrize(("target", "dtype"), CAST)
def test_range_and_precision_are_torchs(target, dtype):
    info = torch.finfo(dtype)
    assert target.maximum == info.max
    assert target.smallest_normal == info.smallest_normal
    assert target.epsilon == info.eps
    assert target.storage_bits == info.bits
    assert target.precision == target.mantissa + 1


@pytest.mark.parametrize(("target", "dtype"), CAST)
def test_largest_binade_holds_the_maximum(target, dtype):
    assert 2.0**target.exponent_max <= target.maximum < 2.0 ** (target.exponent_max + 1)


@pytest.mark.parametrize(("target", "dtype"), CAST)
def test_integers_are_exact_up_to_the_precision(target, dtype):
    last = 2.0**target.precision
    assert cast(last, dtype) == last
    assert cast(last + 1, dtype) != last + 1


@pytest.mark.parametrize(("target", "dtype"), CAST)
def test_subnormals_and_flushing_are_what_casts_do(target, dtype):
    below, above = neighbours(target.flush_threshold)
    assert cast(target.smallest_subnormal, dtype) == target.smallest_subnormal
    assert cast(target.flush_threshold, dtype) == 0.0
    assert cast(below, dtype) == 0.0
    # torch casts float64 to narrow formats through float32, where the next value up is not seen any more.
    above = above if target.storage_bits == 32 else target.flush_threshold * (1 + 2.0**-10)
    assert cast(above, dtype) == target.smallest_subnormal


@pytest.mark.parametrize(("target", "dtype"), [p for p in CAST if p.id in ("float32", "bfloat16", "float16")])
def test_overflow_begins_where_casts_become_infinite(target, dtype):
    below, _ = neighbours(target.overflow_threshold)
    below = below if target.storage_bits == 32 else target.overflow_threshold * (1 - 2.0**-20)
    assert cast(target.overflow_threshold, dtype) == float("inf")
    assert cast(below, dtype) == target.maximum


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_overflow_of_eight_bits_is_rounding_past_the_maximum(name):
    """Casts to 8 bits saturate in some torch releases, so the rounding is looked at 2**6 lower."""
    target = FORMATS[name]
    low = 2.0**-6
    assert cast(target.overflow_threshold * (1 - 2.0**-20) * low, DTYPES[name]) == target.maximum * low
    assert cast(target.overflow_threshold * (1 + 2.0**-20) * low, DTYPES[name]) > target.maximum * low
    assert (cast(target.overflow_threshold * low, DTYPES[name]) > target.maximum * low) == ends_odd(target)


def ends_odd(target):
    return target.maximum / 2.0 ** (target.exponent_max - target.mantissa) % 2 == 1


def test_only_e4m3_holds_the_midpoint_above_its_maximum():
    assert [name for name, target in FORMATS.items() if not ends_odd(target)] == ["float8_e4m3"]
    assert FORMATS["float8_e4m3"].overflow_threshold == 464.0
    assert cast(464.0, torch.float8_e4m3fn) == 448.0


def test_tf32_is_float32s_range_with_float16s_precision():
    tf32 = FORMATS["tf32"]
    assert (tf32.exponent_min, tf32.exponent_max) == (FORMATS["float32"].exponent_min, FORMATS["float32"].exponent_max)
    assert tf32.epsilon == FORMATS["float16"].epsilon


def test_names_aliases_and_lists():
    assert {get_format(name).name for name in ALIASES} <= set(FORMATS)
    assert get_format("BF16") is FORMATS["bfloat16"]
    assert parse_formats("bf16, fp16,bfloat16") == ("bfloat16", "float16")


@pytest.mark.parametrize("text", ["", " , ", "fp17"])
def test_unknown_names_are_explained(text):
    with pytest.raises(PrecauditError, match="number format"):
        parse_formats(text)
