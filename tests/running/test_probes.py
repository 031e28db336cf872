"""Probes of large models: gradients of fewer steps are kept, and vectors are added up by samples."""

import math

import pytest
import torch

from precaudit.running import probes
from precaudit.running.probes import ENOUGH_BYTES, SAMPLE, _difference, _Sums, affordable

STEPS = frozenset([*range(16), *range(49, 66)])


def test_all_steps_of_a_small_model_are_kept():
    assert affordable(STEPS, 1_000_000, 10**12, 5) == STEPS
    assert affordable(frozenset(), 10**12, 0, 5) == frozenset()


@pytest.mark.parametrize(
    ("size", "free", "each"),
    [(ENOUGH_BYTES / 20, 10**12, 10), (10**9, 24 * 10**9, 6), (10**12, 10**12, 5), (10**9, 0, 5)],
)
def test_of_a_large_one_the_first_of_every_stretch(size, free, each):
    kept = affordable(STEPS, int(size), free, 5)
    assert kept == frozenset([*range(each), *range(49, 49 + each)])


@pytest.mark.parametrize("shape", [(4096, 384), (3, 5, 7), (SAMPLE + 1,), (1,), (), (8, 0), (0, 8)])
def test_a_sample_of_vectors_estimates_the_energy_of_their_mean(shape):
    torch.manual_seed(0)
    exact = [torch.randn(shape) * 3 + 1 for _ in range(4)]
    low = [gradient + 0.1 + 0.01 * torch.randn(shape) for gradient in exact]
    sums = _Sums()
    for gradient, close in zip(exact, low, strict=True):
        sums.add(close, gradient, None)
    found = _difference("a", "layer", [sums])
    mean, bias = (torch.stack(parts).mean(0) for parts in (exact, [c - g for c, g in zip(low, exact, strict=True)]))
    tolerance = 0.02 if math.prod(shape) > SAMPLE else 1e-5
    assert found.mean == pytest.approx(float(mean.double().square().sum()), rel=tolerance)
    assert found.bias == pytest.approx(float(bias.double().square().sum()), rel=tolerance)
    assert sums.total_delta is not None
    assert sums.total_delta.numel() <= SAMPLE


def test_a_sample_meets_every_column():
    values = torch.arange(768.0).expand(1 << 13, 768)
    sample, weight = probes._sampled(values)
    assert sample.unique().numel() == 768
    assert weight * sample.numel() == values.numel()
