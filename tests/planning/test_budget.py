"""Gradient errors against their limits."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precaudit.planning.budget import BIAS_LIMIT, RHO_LIMIT, SNR_LIMIT, GradientError, gradient_error, lost_gradients
from precaudit.tracing.records import GradientDifference


def difference(fqn="a", label="bfloat16@init", delta=0.0, gradient=1.0, noise=1.0, bias=0.0, mean=1.0, evaluations=4):
    return GradientDifference(label, fqn, evaluations, delta, gradient, noise, bias, mean)


def test_energies_of_modules_add_up():
    parts = [difference("a", delta=0.01, noise=2.0, bias=0.04), difference("b", delta=0.03, gradient=3.0, mean=3.0)]
    error = gradient_error("bfloat16@init", [*parts, difference("a", "float16@init", delta=9.0)])
    assert error.rho == pytest.approx(0.04 / 3)
    assert error.snr == pytest.approx(4 / 0.04)
    assert error.bias == pytest.approx(math.sqrt(0.04 / 4))
    assert error.evaluations == 4


@pytest.mark.parametrize(
    ("own", "lost"),
    [
        ({"delta": 4e-6, "noise": 1e-8}, True),
        ({"delta": 4e-6, "noise": 1e-5}, False),  # batches differ by more
        ({"delta": 4e-7, "noise": 1e-8}, False),
        ({"delta": math.inf, "noise": 1e-8}, False),  # which is left to the trials
        ({"gradient": 1e-13, "delta": 4e-6, "noise": 1e-8}, False),  # what rounding leaves of zero
        ({"label": "float16@init", "delta": 4e-6, "noise": 1e-8}, False),
    ],
)
def test_gradients_that_are_lost_beside_large_ones(own, lost):
    parts = [difference("a", delta=1e-4), difference("b", **{"gradient": 1e-6, **own})]
    assert [(each.fqn, each.error) for each in lost_gradients("bfloat16", parts)] == ([("b", 2.0)] if lost else [])


def test_gradients_are_lost_over_all_phases_of_training():
    phases = [("bfloat16@init", 3e-6, 1e-6, 4e-6), ("bfloat16@trained", 9e-6, 2e-6, 5e-6)]
    parts = [difference("b", label, delta, gradient, noise) for label, delta, gradient, noise in phases]
    (lost,) = lost_gradients("bfloat16", [difference("a", delta=1e-4), *parts])
    assert lost.error == pytest.approx(math.sqrt((3 + 9) / (1 + 2)))
    noisy = [difference("b", label, delta, gradient, 2 * noise) for label, delta, gradient, noise in phases]
    assert lost_gradients("bfloat16", [difference("a", delta=1e-4), *noisy]) == []


def test_nothing_probed_is_nothing_known():
    assert gradient_error("bfloat16@init", []) is None
    assert gradient_error("bfloat16@init", [difference(label="float16@init")]) is None


@pytest.mark.parametrize("noise", [1.0, 0.0])
def test_an_exact_format_has_no_error(noise):
    error = gradient_error("tf32", [difference(label="tf32", noise=noise)])
    assert (error.rho, error.snr, error.bias) == (0.0, math.inf, 0.0)
    assert error.within_budget


def test_rho_is_nan_without_noise_and_other_limits_decide():
    error = gradient_error("x", [difference(label="x", delta=0.001, noise=0.0)])
    assert math.isnan(error.rho)
    assert error.within_budget
    assert not gradient_error("x", [difference(label="x", delta=1.0, noise=0.0)]).within_budget


def test_an_overflow_is_left_to_the_trials():
    error = gradient_error("x", [difference(label="x", delta=math.inf, bias=math.inf), difference("b", "x")])
    assert error.rho == math.inf
    assert error.within_budget


@pytest.mark.parametrize(
    ("rho", "snr", "bias", "within"),
    [
        (RHO_LIMIT, SNR_LIMIT, BIAS_LIMIT, True),
        (RHO_LIMIT * 1.01, SNR_LIMIT, BIAS_LIMIT, False),
        (RHO_LIMIT, SNR_LIMIT * 0.99, BIAS_LIMIT, False),
        (RHO_LIMIT, SNR_LIMIT, BIAS_LIMIT * 1.01, False),
        (math.nan, 100.0, 0.0, True),
    ],
)
def test_each_limit_counts(rho, snr, bias, within):
    assert GradientError("x", rho, snr, bias, 1).within_budget is within


@pytest.mark.parametrize(
    ("rho", "snr", "bias", "within"),
    [
        (0.0099, 10.1, 0.199, True),
        (0.0101, 10.1, 0.199, False),
        (0.0099, 9.9, 0.199, False),
        (0.0099, 10.1, 0.201, False),
        (0.1, 99.0, 0.0, False),
        (0.1, 101.0, 0.0, True),
    ],
)
def test_the_limits_are_those_that_reports_tell(rho, snr, bias, within):
    assert GradientError("x", rho, snr, bias, 1).within_budget is within


positive = st.floats(1e-6, 1e6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_the_scale_of_the_loss_doesn_t_matter(parts, factor):
    def error(scale):
        return gradient_error(
            "x",
            [
                difference(str(i), "x", d * scale**2, g * scale**2, n * scale**2, d * scale**2 / 2, g * scale**2)
                for i, (d, g, n) in enumerate(parts)
            ],
        )

    one, other = error(1.0), error(factor)
    assert other.rho == pytest.approx(one.rho, rel=1e-6)
    assert other.snr == pytest.approx(one.snr, rel=1e-6)
    assert other.bias == pytest.approx(one.bias, rel=1e-6)
