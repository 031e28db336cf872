"""Weights that an open autocast region goes on with after an optimizer has changed them."""

import os
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run

STEPS = 4
X = torch.ones(4, 3)


def region(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def noted(train):
    """What a float32 run notes of `train(model, optimizer)`."""

    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.LayerNorm(3))
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), STEPS + 1), "x", audited=frozenset({0})), code)
    assert result.error is None
    return result.own_precision.stale_casts


def steps(model, optimizer, each=nullcontext, after=lambda: None):
    for _ in range(STEPS):
        with each():
            loss = model(torch.arange(5)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()


def test_torch_keeps_cast_weights_within_a_region():
    layer = nn.Linear(3, 3)
    with region():
        before = layer(X)
        with torch.no_grad():
            layer.weight.add_(1.0)
            layer.bias.add_(1.0)
        assert torch.equal(layer(X), before)
        with region():
            assert torch.equal(layer(X), before)
        assert torch.equal(layer(X), before)
    with region():
        assert not torch.equal(layer(X), before)


def test_region_around_the_loop_is_recorded_with_the_age_of_its_casts():
    def train(model, optimizer):
        with region():
            steps(model, optimizer)

    found = noted(train)
    assert (found.place.path, found.fqn, found.optimizer, found.steps) == (__file__, "1", "SGD", STEPS - 1)


def test_call_after_a_step_uses_casts_of_age_one():
    def train(model, optimizer):
        def once_more():
            model(torch.arange(5))

        steps(model, optimizer, region, once_more)

    assert noted(train).steps == 1


@pytest.mark.parametrize(
    "train",
    [
        lambda model, optimizer: steps(model, optimizer),
        lambda model, optimizer: steps(model, optimizer, region),
        lambda model, optimizer: steps(model, optimizer, lambda: region(enabled=False)),
    ],
    ids=["none", "in each step", "off"],
)
def test_regions_within_a_step_are_not_recorded(train):
    assert noted(train) is None


@pytest.mark.parametrize("options", [{"cache_enabled": False}, {"enabled": False}])
def test_region_without_cache_is_not_recorded(options):
    def train(model, optimizer):
        with region(**options):
            steps(model, optimizer)

    assert noted(train) is None


def test_cleared_cache_is_not_recorded():
    def train(model, optimizer):
        with region():
            steps(model, optimizer, after=torch.clear_autocast_cache)

    assert noted(train) is None
