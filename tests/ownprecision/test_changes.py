"""What a script does to its gradients before its scaler unscales them, with the loss scale in them and without."""

import os

import pytest
import torch
from torch import nn

from precaudit.ownprecision.changes import depends_on_scale
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def decayed(scaler, parameter):
    parameter.grad.add_(parameter.detach(), alpha=0.1)


def decayed_by_the_scale(scaler, parameter):
    parameter.grad.add_(parameter.detach(), alpha=0.1 * scaler.get_scale())


def centred(scaler, parameter):
    parameter.grad.sub_(parameter.grad.mean(-1, keepdim=True))


def divided(scaler, parameter):
    parameter.grad.div_(scaler.get_scale())


def untouched(scaler, parameter):
    pass


def settings(change, hook=None, **spec):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        for parameter in model.parameters() if hook else ():
            parameter.register_hook(lambda gradient: hook(scaler, gradient))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(50):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(32, 8)).square().mean()).backward()
            for parameter in model.parameters():
                change(scaler, parameter)
            scaler.step(optimizer)
            scaler.update(2.0**10)

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), 6), "x", **spec), code)
    assert result.error is None
    return result.own_precision


@pytest.mark.parametrize(
    ("change", "depends"),
    [(decayed, True), (divided, True), (decayed_by_the_scale, False), (centred, False), (untouched, False)],
)
def test_dependence_of_a_gradient_change_on_the_loss_scale(change, depends):
    """In the first step whose gradients are finite."""
    without = settings(change, audited=frozenset({0})).changed_by
    assert depends_on_scale(without, settings(change, precision="as-written").changed_by) is depends


@pytest.mark.parametrize(
    ("hook", "depends"),
    [
        (lambda scaler, gradient: gradient.clamp(-0.01, 0.01), True),
        (lambda scaler, gradient: gradient.clamp(-0.01 * scaler.get_scale(), 0.01 * scaler.get_scale()), False),
        (lambda scaler, gradient: gradient / 2, False),
        (lambda scaler, gradient: gradient.clamp(-1e-3, 1e-3), True),
        (lambda scaler, gradient: None, None),
    ],
    ids=["clips", "clips scaled", "halves", "clips nearly all", "looks"],
)
def test_dependence_of_a_hook_on_the_loss_scale(hook, depends):
    without = settings(untouched, hook, audited=frozenset({0}))
    scaled = settings(untouched, hook, precision="as-written")
    assert depends_on_scale([without.hooked_by], [scaled.hooked_by]) is depends
    assert ("hooks" in without.misuses) is (depends is not None)


@pytest.mark.parametrize("precision", ["float32", "as-written"])
def test_gradient_changes_are_recorded_per_optimizer(precision):
    """The first backward pass reaches the second's parameters too, whose gradients are made anew before its step."""

    def code():
        torch.manual_seed(0)
        trunk, head = nn.Linear(8, 8), nn.Linear(8, 1)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in (head, trunk)]
        for _ in range(9):
            for optimizer in optimizers:
                for each in optimizers:
                    each.zero_grad()
                scaler.scale(head(trunk(torch.randn(32, 8))).square().mean()).backward()
                scaler.step(optimizer)
            scaler.update()

    spec = RunSpec(Job("script", "train.py", (), os.getcwd(), 6), "x", audited=frozenset({0}), precision=precision)
    assert run(spec, code).own_precision.changed_by == [(0.0, 1.0), (0.0, 1.0)]


def test_no_gradient_change_without_a_scaler():
    assert depends_on_scale([], [(0.1, 1.0)]) is None
    assert depends_on_scale([(0.1, 1.0)], []) is None
    assert depends_on_scale([None], [(0.1, 1.0)]) is None
