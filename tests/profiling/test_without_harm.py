"""The formats in which values alias, and the gradient hardly shows it."""

import math

import pytest

from precaudit.planning.budget import GradientError
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import _as_tried, _without_harm


def error(label, rho=0.001, snr=1e4, bias=0.01):
    return GradientError(label, rho, snr, bias, 8)


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ({}, {"bfloat16", "float16"}),
        ({"rho": 1.0, "snr": 2.0}, {"float16"}),
        ({"rho": math.inf, "snr": 0.0}, {"float16"}),
        ({"rho": math.nan, "snr": 1e4}, {"bfloat16", "float16"}),
    ],
)
def test_at_no_time_is_a_gradient_over_budget_or_lost(late, expected):
    seen = [error("bfloat16@init"), error("float16@init"), error("bfloat16@late", **late)]
    assert _without_harm(seen) == expected
    assert _without_harm([]) == set()


def test_what_was_tried_without_harm_is_no_error():
    ban = Ban("PA101", "attention", "sub", "float16", "error", "sub reaches 8e+04", "", "other")
    assert [_as_tried(ban, harmless).severity for harmless in ({"float16"}, {"bfloat16"})] == ["warning", "error"]
