"""Rounding points, against torch's own casts, brute force in float64, and products written out by hand."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.execution.rounding import (
    FLOAT8_DTYPES,
    HALF_DTYPES,
    quantize,
    round_mantissa,
    rounding_for,
)

SUBNORMAL = 2.0**-149
words = st.integers(0, 2**32 - 1).map(lambda bits: struct.unpack("<f", struct.pack("<I", bits))[0])
halfway = st.tuples(st.integers(-149, 127), st.integers(0, 2**12 - 1)).map(
    lambda pair: math.ldexp(1 + (2 * pair[1] + 1) / 2**13, pair[0])
)


def in_float32(value):
    """Whether a Python float is one of float32's."""
    return math.isinf(value) or math.isnan(value) or struct.unpack("<f", struct.pack("<f", value))[0] == value


def nearest(value, bits):
    """The multiple of 2^(exponent - bits) nearest to a float32, ties to even: Python's own rounding of integers."""
    if value == 0 or not math.isfinite(value):
        return value
    exponent = max(math.frexp(value)[1] - 1, -126)
    rounded = math.ldexp(round(math.ldexp(value, bits - exponent)), exponent - bits)
    return math.copysign(math.inf, value) if abs(rounded) >= 2.0**128 else math.copysign(rounded, value)


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


# ---------------------------------------------------------------- values


@settings(max_examples=300, deadline=None)
@given(st.lists(words | halfway.filter(in_float32), min_size=1, max_size=20), st.sampled_from([1, 3, 7, 10, 22]))
def test_round_mantissa_is_the_nearest_value_with_that_many_bits(values, bits):
    got = round_mantissa(torch.tensor(values, dtype=torch.float32), bits)
    expected = torch.tensor([nearest(v, bits) for v in values], dtype=torch.float64)
    assert same(got.double(), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 2.0**-11, 1.0),
        (1 + 3 * 2.0**-11, 1 + 2.0**-9),
        (1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-10),
        (2 - 2.0**-12, 2.0),
        (SUBNORMAL, 0.0),
        (2.0**-126 - SUBNORMAL, 2.0**-126),
        ((2 - 2.0**-23) * 2.0**127, math.inf),
        (-0.0, -0.0),
    ],
)
def test_round_mantissa_at_the_edges(value, expected):
    got = round_mantissa(torch.tensor([value, -value]), 10)
    assert got.tolist() == [expected, -expected]
    assert torch.equal(got.signbit(), torch.tensor([value, -value]).signbit())


def test_seven_bits_are_bfloat16():
    values = torch.randn(20000) * torch.randn(20000).mul(20).exp()
    values = torch.cat([values, torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1e-40])])
    assert same(round_mantissa(values, 7), values.bfloat16().float())


def test_round_mantissa_takes_any_layout():
    values = torch.randn(6, 5)
    assert torch.equal(round_mantissa(values.t(), 10), round_mantissa(values, 10).t())
    assert round_mantissa(torch.tensor(1 + 2.0**-11), 10).item() == 1.0


@pytest.mark.parametrize(("name", "dtype"), HALF_DTYPES.items())
def test_half_rounding_equals_torch_casts(name, dtype):
    values = torch.cat([torch.randn(1000) * 10.0 ** torch.randint(-9, 6, (1000,)), torch.tensor([1e6, -1e6, 0.0])])
    rounding = rounding_for(name)
    assert rounding.dtype == dtype
    assert rounding.operand(values).dtype == torch.float32
    assert torch.equal(rounding.operand(values), values.to(dtype).float())
    assert rounding.result(values).dtype == dtype
    assert torch.equal(rounding.result(values), values.to(dtype))


@pytest.mark.parametrize(("name", "dtype"), FLOAT8_DTYPES.items())
def test_quantize_is_a_cast_of_scaled_values(name, dtype):
    values = torch.randn(64, 32) * torch.randn(64, 32).exp()
    limit = torch.finfo(dtype).max
    scale = limit / values.abs().max()
    one_by_one = [(v * scale).clamp(-limit, limit).to(dtype).float() / scale for v in values.flatten()]
    assert torch.equal(quantize(values, name), torch.stack(one_by_one).reshape(values.shape))


@pytest.mark.parametrize("name", FLOAT8_DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_quantize_scales_every_row_on_its_own(name, dim):
    values = torch.randn(8, 16) * torch.logspace(-20, 20, 8).unsqueeze(1)
    rows = [quantize(row, name) for row in values.unbind(1 - dim)]
    assert torch.equal(quantize(values, name, dim=dim), torch.stack(rows, dim=1 - dim))


@pytest.mark.parametrize("name", FLOAT8_DTYPES)
def test_quantize_keeps_the_largest_value_and_every_dtype(name):
    values = torch.tensor([3e38, -1.0, 0.0])
    assert quantize(values, name)[0] == pytest.approx(3e38, rel=1e-6)
    assert quantize(values.bfloat16(), name).dtype == torch.bfloat16


@pytest.mark.parametrize("name", FLOAT8_DTYPES)
def test_quantize_leaves_a_zero_row_alone_and_shows_what_is_not_finite(name):
    assert torch.equal(quantize(torch.zeros(4), name), torch.zeros(4))
    assert torch.equal(quantize(torch.full((4,), 1e-45), name), torch.zeros(4))
    odd = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert same(quantize(odd, name), odd)


def test_quantize_is_idempotent():
    values = torch.randn(100)
    once = quantize(values, "float8_e4m3")
    torch.testing.assert_close(quantize(once, "float8_e4m3"), once, rtol=1e-6, atol=0)


def test_rounding_is_looked_up_by_contract_name():
    assert rounding_for("float32") is None
    assert rounding_for("tf32").operand(torch.tensor([1 + 2.0**-11])).item() == 1.0


# ---------------------------------------------------------------- products, forward and backward


def product(rounding, x, w):
    """y = x @ w.T with operands and result rounded, as the emulator runs it."""
    return rounding.result(rounding.operand(x) @ rounding.operand(w).t())


def leaves():
    generator = torch.Generator().manual_seed(3)
    x, w, g = (torch.randn(shape, generator=generator) for shape in ((5, 7), (4, 7), (5, 4)))
    return x.requires_grad_(), w.requires_grad_(), g


@pytest.mark.parametrize(("name", "dtype"), HALF_DTYPES.items())
def test_half_rounds_operands_result_gradient_dgrad_and_wgrad(name, dtype):
    x, w, g = leaves()
    y = product(rounding_for(name), x, w)
    y.backward(g.to(dtype))
    xr, wr, gr = (t.detach().to(dtype).float() for t in (x, w, g))
    assert torch.equal(y, (xr @ wr.t()).to(dtype))
    assert torch.equal(x.grad, (gr @ wr).to(dtype).float())
    assert torch.equal(w.grad, (gr.t() @ xr).to(dtype).float())


def test_tf32_rounds_operands_in_all_three_products_and_no_result():
    x, w, g = leaves()
    product(rounding_for("tf32"), x, w).backward(g)
    xr, wr, gr = (round_mantissa(t.detach(), 10) for t in (x, w, g))
    y = product(rounding_for("tf32"), x, w)
    assert torch.equal(y, xr @ wr.t())
    assert not torch.equal(y, round_mantissa(y.detach(), 10))
    assert torch.equal(x.grad, gr @ wr)
    assert torch.equal(w.grad, gr.t() @ xr)


@pytest.mark.parametrize("forward", FLOAT8_DTYPES)
def test_float8_quantizes_forward_in_its_format_and_gradients_in_e5m2(forward):
    x, w, g = leaves()
    y = product(rounding_for(forward), x, w)
    y.backward(g.bfloat16())
    xr, wr = (quantize(t.detach().bfloat16().float(), forward) for t in (x, w))
    gr = quantize(g.bfloat16().float(), "float8_e5m2")
    assert torch.equal(y, (xr @ wr.t()).bfloat16())
    assert torch.equal(x.grad, (gr @ wr).bfloat16().float())
    assert torch.equal(w.grad, (gr.t() @ xr).bfloat16().float())


@pytest.mark.parametrize("name", ["bfloat16", "float16", "tf32", "float8_e4m3"])
def test_rounding_can_be_differentiated_twice(name):
    x, w, _ = leaves()
    y = product(rounding_for(name), x, w).float().square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    gradient.square().sum().backward()
    assert w.grad.isfinite().all()
    assert w.grad.abs().sum() > 0
