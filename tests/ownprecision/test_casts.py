"""What casts to low precision lose."""

import pytest
import torch
from watched import seen, train

from precaudit.ownprecision.records import BlurredInCast, RoundedConstant, VanishedInCast


def test_underflow_in_casts_is_counted_per_line():
    values = torch.tensor([1.0, 1e-3, 1e-9, 0.0])

    def code():
        def after_step(model):
            values.half(), values.bfloat16(), (values * 1e3).to(torch.float16)
            torch.zeros(4, dtype=torch.float16).copy_(values * 1e-7)

        train(after_step=after_step)

    cast, copied = seen(code, VanishedInCast)
    assert cast.lost == pytest.approx(1 / 6)  # two casts of three values, of which one is lost once
    assert copied.place.line == cast.place.line + 1
    assert copied.lost == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_underflow_in_casts_to_float8_is_counted(dtype):
    """Half of float8_e5m2's smallest value, 2^-17, is rounded to zero, and half of float8_e4m3's is 2^-10."""
    values = torch.tensor([1.0, 2.0**-9, 2.0**-11, 2.0**-18], dtype=dtype)

    def code():
        def after_step(model):
            values.to(torch.float8_e4m3fn)
            values.to(torch.float8_e5m2)

        train(after_step=after_step)

    assert [(each.dtype, each.lost) for each in seen(code, VanishedInCast)] == [
        ("float8_e4m3fn", 0.5),
        ("float8_e5m2", 0.25),
    ]


def test_coarse_casts_are_reported_per_line():
    def code():
        torch.manual_seed(1)
        metres = torch.tensor([4123.25, 8201.75]) + torch.randn(64, 2)

        def after_step(model):
            metres.to(torch.bfloat16)
            (metres - metres.mean(0)).to(torch.bfloat16), torch.full((8, 2), 8201.75).bfloat16()
            torch.stack([metres[:, 0], torch.randn(64)], 1).half()

        train(after_step=after_step)

    whole, centred, column = seen(code, BlurredInCast)
    assert whole.lost > 0.9
    assert centred.lost < 0.01
    assert (column.dtype, column.place.line) == ("float16", whole.place.line + 2)
    assert 0.25 < column.lost < whole.lost


def test_numbers_that_become_others_are_noted_once_a_line():
    def code():
        def after_step(model):
            torch.tensor(0.999, dtype=torch.bfloat16)
            torch.full((), 1e-9, dtype=torch.float16)
            torch.tensor(0.998, dtype=torch.bfloat16)
            torch.tensor(0.99, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.float16), torch.tensor(0.999)

        train(after_step=after_step)

    decay, eps, discount = seen(code, RoundedConstant)
    assert (decay.dtype, decay.value, decay.becomes) == ("bfloat16", 0.999, 1.0)
    assert (eps.dtype, eps.value, eps.becomes) == ("float16", 1e-9, 0.0)
    assert eps.place.line == decay.place.line + 1
    assert (discount.value, discount.becomes) == (0.998, 0.99609375)
