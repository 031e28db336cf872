"""A loss scale kept by hand, and when the script takes it out of its gradients."""

import os

import pytest
import torch
from torch import nn

from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run

SCALE = 1024.0


def noted(train):
    """What a float32 run records of `train(model, optimizer, losses)`."""

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        while True:
            train(model, optimizer, [model(torch.randn(8, 4)).square().mean() for _ in range(2)])

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), 3), "x", audited=frozenset({0})), code)
    assert result.error is None
    return result.own_precision


def divide(model, scale=SCALE):
    for parameter in model.parameters():
        parameter.grad.div_(scale)


def each_time(model, optimizer, losses, scale=SCALE):
    optimizer.zero_grad()
    for loss in losses:
        (loss * scale).backward()
        divide(model, scale)
    optimizer.step()


def once(model, optimizer, losses):
    optimizer.zero_grad(set_to_none=False)
    for loss in losses:
        (loss * SCALE).backward()
    divide(model)
    optimizer.step()


def into_sums(model, optimizer, losses):
    """Each loss's own gradients are taken away before the next ones come."""
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for loss in losses:
        model.zero_grad()
        (SCALE * loss).backward()
        divide(model)
        for total, parameter in zip(sums, model.parameters(), strict=True):
            total += parameter.grad
    for total, parameter in zip(sums, model.parameters(), strict=True):
        parameter.grad = total
    optimizer.step()


def clipped(model, optimizer, losses):
    optimizer.zero_grad()
    for loss in losses:
        (loss * SCALE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    divide(model)
    optimizer.step()


def clipped_before(model, optimizer, losses, limit=1.0):
    optimizer.zero_grad()
    (losses[0] * SCALE).backward()
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    divide(model)
    optimizer.step()


def clipped_by_value(model, optimizer, losses):
    optimizer.zero_grad()
    (losses[0] * SCALE).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    divide(model)
    optimizer.step()


def clipped_to_a_scaled_limit(model, optimizer, losses):
    """What is not changed is clipped to a limit that knows the scale."""
    clipped_before(model, optimizer, losses, 1e3 * SCALE)


def clipped_after(model, optimizer, losses):
    optimizer.zero_grad()
    (losses[0] * SCALE).backward()
    divide(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()


def of_a_weight_that_gets_none(model, optimizer, losses):
    model.weight.register_hook(torch.zeros_like)
    once(model, optimizer, losses)


def a_mean(model, optimizer, losses):
    """Two is no loss scale."""
    each_time(model, optimizer, losses, scale=2.0)


def test_repeated_division_of_accumulated_gradients_is_recorded():
    assert noted(each_time).misuses["adds_by_hand"].place.path == __file__


@pytest.mark.parametrize("train", [clipped_before, clipped_by_value])
def test_clipping_before_the_division_is_recorded(train):
    misuse = noted(train).misuses["clips_by_hand"]
    assert misuse.place.path == __file__
    assert misuse.function.startswith("clip_grad_")


@pytest.mark.parametrize("train", [clipped_after, clipped_to_a_scaled_limit])
def test_clipping_to_the_right_limit_is_not_recorded(train):
    assert noted(train).misuses == {}


@pytest.mark.parametrize("train", [once, into_sums, clipped, of_a_weight_that_gets_none, a_mean])
def test_single_division_of_gradients_is_not_recorded(train):
    assert "adds_by_hand" not in noted(train).misuses


@pytest.mark.parametrize(("train", "scale"), [(once, SCALE), (a_mean, None)])
def test_the_scale_itself_is_recorded(train, scale):
    assert noted(train).scaled_by_hand == scale
