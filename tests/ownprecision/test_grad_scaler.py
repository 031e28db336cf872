"""A script's own GradScaler trains as it does without precaudit, and its factor is in no loss that is kept."""

import os

import pytest
import torch
from torch import nn

from precaudit.ownprecision.grad_scaler import OwnScaler
from precaudit.ownprecision.records import OwnPrecision
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def losses(backward, precision):
    return trained(backward, precision).losses


def trained(backward, precision):
    """A run in which `backward(scaler, a, b)` gets two losses of each step."""

    def code():
        torch.manual_seed(0)
        model, scaler = nn.Linear(4, 2), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(6):
            optimizer.zero_grad()
            a, b = model(torch.randn(8, 4)).square().mean(0)
            backward(scaler, a, b)
            scaler.step(optimizer)
            scaler.update()

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), 6), "x", precision=precision), code)
    assert result.error is None
    return result


@pytest.mark.parametrize(
    "backward",
    [
        lambda scaler, a, b: scaler.scale(a + b).backward(),
        lambda scaler, a, b: (scaler.scale(a) + scaler.scale(b)).backward(),
        lambda scaler, a, b: (sum(scaler.scale([a, b])) / 2).backward(),
        lambda scaler, a, b: torch.autograd.backward(scaler.scale((a, b))),
        lambda scaler, a, b: torch.autograd.backward(list(scaler.scale(loss for loss in (a, b)))),
        lambda scaler, a, b: (scaler.scale(a) * 8 / 8 + scaler.scale(b)).backward(),
    ],
)
def test_loss_is_recorded_without_its_scale(backward):
    assert losses(backward, "as-written") == pytest.approx(losses(backward, "float32"), rel=1e-5)


def test_the_steps_of_a_scaler_are_counted_with_those_that_it_skips():
    def overflowing_at_first(scaler, a, b):
        (scaler.scale(a + b) * (float("inf") if scaler.get_scale() == 1024.0 else 1.0)).backward()

    result = trained(overflowing_at_first, "as-written")
    assert result.steps < result.own_precision.scaler_steps == 6
    assert "scaler_steps" not in result.own_precision.facts()


def test_manual_scale_is_part_of_the_loss():
    def by_hand(scaler, a, b):
        scaler.scale((a + b) * 1024).backward()

    assert losses(by_hand, "as-written")[0] == losses(by_hand, "float32")[0] > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_and_double_backward_have_the_scale(dtype):
    def gradients(scale):
        x = torch.tensor([1.5, -2.0], requires_grad=True)
        (first,) = torch.autograd.grad(scale((x**3).to(dtype).sum()), x, create_graph=True)
        return first, *torch.autograd.grad(scale(first.sum()), x)

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain = gradients(scaler.scale)
    with OwnScaler(OwnPrecision()).scaled_in_gradients():
        ours = gradients(scaler.scale)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_scale_without_gradients_and_disabled_scaler():
    ones = torch.ones(2)
    with OwnScaler(OwnPrecision()).scaled_in_gradients():
        assert torch.equal(torch.amp.GradScaler("cpu", init_scale=8.0).scale(ones), 8 * ones)
        assert torch.amp.GradScaler("cpu", enabled=False).scale(ones) is ones


@pytest.mark.parametrize("make", [torch.amp.GradScaler, torch.cuda.amp.GradScaler])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scaler_for_cuda_scales_on_any_machine(make):
    ones = torch.ones(2)
    with OwnScaler(OwnPrecision()).scaled_in_gradients():
        assert torch.equal(make(init_scale=8.0).scale(ones), 8 * ones)
        assert make(enabled=False).scale(ones) is ones


@pytest.mark.parametrize(
    ("unscale", "noted"),
    [(lambda scaler, g: g, True), (lambda scaler, g: g / scaler.get_scale(), False)],
)
@pytest.mark.parametrize(("start", "differentiable"), [(0.0, True), (1.0, False)], ids=["penalty", "inner step"])
def test_penalty_of_scaled_gradients_is_recorded(start, differentiable, unscale, noted):
    settings = OwnPrecision()
    with OwnScaler(settings).scaled_in_gradients():
        scaler, x = torch.amp.GradScaler("cpu"), torch.ones(2, requires_grad=True)
        (gradient,) = torch.autograd.grad(scaler.scale((x**2).sum()), x, create_graph=differentiable)
        scaler.scale((start * x - unscale(scaler, gradient)).square().sum()).backward()
    assert (settings.penalizes_scaled is not None) is noted
    assert not noted or settings.penalizes_scaled.path == __file__


def test_gradients_outside_the_loss_are_no_penalty():
    settings = OwnPrecision()
    with OwnScaler(settings).scaled_in_gradients():
        scaler, x = torch.amp.GradScaler("cpu"), torch.ones(2, requires_grad=True)
        for _ in range(2):
            scaler.scale((x**2).sum()).backward()
    assert settings == OwnPrecision()
