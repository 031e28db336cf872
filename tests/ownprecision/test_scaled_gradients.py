"""Losses that a script forgets to scale, and steps of an optimizer that its scaler forgets."""

import math
import os

import pytest
import torch
from torch import nn

from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def settings(train, enabled=True):
    """What a float32 run tells of `train(scaler, optimizers, losses)`, once a step."""

    def code():
        torch.manual_seed(0)
        trunk, head = nn.Linear(4, 4), nn.Linear(4, 2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in (trunk, head)]
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            train(scaler, optimizers, head(trunk(torch.randn(8, 4))).square().mean(0).unbind())

    spec = RunSpec(Job("script", "train.py", (), os.getcwd(), 6), "x", audited=frozenset({0}))
    result = run(spec, code)
    assert result.error is None
    return result.own_precision.misuses


def in_turn(first, second, step=lambda scaler, optimizer: scaler.step(optimizer)):
    def train(scaler, optimizers, losses):
        first(scaler, losses[0]).backward(retain_graph=True)
        second(scaler, losses[1]).backward()
        scaler.step(optimizers[0])
        step(scaler, optimizers[1])

    return train


def scaled(scaler, loss):
    return scaler.scale(loss)


def plain(scaler, loss):
    return loss


def by_hand(scaler, loss):
    return loss * scaler.get_scale()


@pytest.mark.parametrize(
    ("first", "second", "mixed"),
    [(scaled, plain, True), (plain, scaled, True), (plain, plain, False), (by_hand, plain, False)],
)
def test_unscaled_loss_is_recorded(first, second, mixed):
    noted = settings(in_turn(first, second))["unscaled_loss"]
    assert noted.place.path == __file__
    assert noted.mixed is mixed


@pytest.mark.parametrize(("first", "second"), [(scaled, scaled), (by_hand, by_hand), (scaled, by_hand)])
def test_scaled_losses_are_not_recorded(first, second):
    assert not {"unscaled_loss", "steps_scaled"} & set(settings(in_turn(first, second)))


def test_disabled_scaler_is_not_recorded():
    assert "unscaled_loss" not in settings(in_turn(scaled, plain), enabled=False)


def test_unscaled_loss_of_unscaled_parameters_is_not_recorded():
    def train(scaler, optimizers, losses):
        scaler.scale(losses[0]).backward(retain_graph=True)
        scaler.step(optimizers[0])
        optimizers[1].zero_grad()
        losses[1].backward(inputs=[p for group in optimizers[1].param_groups for p in group["params"]])
        optimizers[1].step()

    assert not {"unscaled_loss", "steps_scaled"} & set(settings(train))


def test_step_on_scaled_gradients_is_recorded():
    noted = settings(in_turn(scaled, scaled, lambda scaler, optimizer: optimizer.step()))["steps_scaled"]
    assert (noted.place.path, noted.function) == (__file__, "SGD")
    own = settings(in_turn(scaled, scaled, lambda scaler, optimizer: (scaler.unscale_(optimizer), optimizer.step())))
    assert "steps_scaled" not in own


def test_a_step_beside_the_scalers_is_noted():
    """The line of a loop without a scaler, left in: it steps where the scaler skips."""
    twice = in_turn(scaled, scaled, lambda scaler, optimizer: (scaler.step(optimizer), optimizer.step()))
    noted = settings(twice)["steps_again"]
    assert (noted.place.path, noted.function) == (__file__, "SGD")


@pytest.mark.parametrize("to_none", [True, False])
def test_an_own_step_on_other_gradients_than_the_scalers_is_not_noted(to_none):
    """Of another optimizer, and of a loss that is not scaled, in turn with one that is."""

    def train(scaler, optimizers, losses):
        scaled(scaler, losses[0]).backward(retain_graph=True)
        scaler.step(optimizers[1])
        scaler.unscale_(optimizers[0])
        optimizers[0].step()
        scaler.update()
        optimizers[1].zero_grad(set_to_none=to_none)
        sum(parameter.square().sum() for parameter in parameters_of(optimizers[1])).backward()
        optimizers[1].step()

    assert "steps_again" not in settings(train)


def parameters_of(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip(optimizer):
    nn.utils.clip_grad_norm_(iter(parameters_of(optimizer)), 1.0)


def test_clipping_before_unscaling_is_recorded():
    noted = settings(in_turn(scaled, scaled, lambda scaler, optimizer: (clip(optimizer), optimizer.step())))
    assert (noted["clips_scaled"].place.path, noted["clips_scaled"].function) == (__file__, "clip_grad_norm_")
    assert noted["steps_scaled"].place.path == __file__

    def in_order(scaler, optimizer):
        scaler.unscale_(optimizer)
        clip(optimizer)
        scaler.step(optimizer)

    assert not {"clips_scaled", "steps_scaled"} & set(settings(in_turn(scaled, scaled, in_order)))


@pytest.mark.parametrize("limit", [((math.inf,), {}), ((), {"max_norm": torch.tensor(math.inf)})])
def test_clipping_without_a_limit_only_measures(limit):
    def measured(scaler, optimizer):
        nn.utils.clip_grad_norm_(parameters_of(optimizer), *limit[0], **limit[1])
        scaler.step(optimizer)

    assert "clips_scaled" not in settings(in_turn(scaled, scaled, measured))


def divide(gradient, scale):
    gradient /= scale


def divide_unseen(gradient, scale):
    gradient.data.div_(scale)


@pytest.mark.parametrize("division", [divide, divide_unseen])
def test_manual_unscaling_is_not_recorded(division):
    def divided(scaler, optimizer):
        for parameter in parameters_of(optimizer):
            division(parameter.grad, scaler.get_scale())
        clip(optimizer)
        optimizer.step()

    assert not {"clips_scaled", "steps_scaled"} & set(settings(in_turn(scaled, scaled, divided)))


def test_reading_the_scale_does_not_count_as_unscaling():
    def asked_before(scaler, loss):
        scaler.get_scale()
        return scaler.scale(loss)

    noted = settings(in_turn(asked_before, asked_before, lambda scaler, optimizer: optimizer.step()))
    assert "steps_scaled" in noted


@pytest.mark.parametrize("early", [True, False])
def test_scaled_loss_added_to_unscaled_gradients_is_recorded(early):
    def train(scaler, optimizers, losses):
        scaler.scale(losses[0]).backward(retain_graph=True)
        if early:
            scaler.unscale_(optimizers[0])
        scaler.scale(losses[1]).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)

    assert ("adds_scaled" in settings(train)) is early


@pytest.mark.parametrize(("unscales", "updates", "noted"), [(1, 1, True), (1, 2, False), (2, 2, False), (0, 1, False)])
def test_second_pass_left_scaled_is_recorded(unscales, updates, noted):
    """As SAM has them: it steps on the gradients of the second."""

    def train(scaler, optimizers, losses):
        scaler.scale(losses[0]).backward(retain_graph=True)
        for number in range(2):
            if number < unscales:
                scaler.unscale_(optimizers[0])
            if number < updates - 1:
                scaler.update()
            if not number:
                optimizers[0].zero_grad()
                scaler.scale(losses[1]).backward()
        scaler.step(optimizers[0])
        scaler.step(optimizers[1])
        scaler.update()

    found = settings(train, enabled=True)
    assert ("unscaled_before" in found) is noted
    assert "adds_scaled" not in found


@pytest.mark.parametrize(("together", "noted"), [(True, True), (False, False)])
def test_update_before_unscaling_is_recorded(together, noted):
    """Both losses go backward at first, or each one just before its optimizer's step."""

    def train(scaler, optimizers, losses):
        scaler.scale(losses[0]).backward(retain_graph=True)
        if together:
            scaler.scale(losses[1]).backward()
        scaler.step(optimizers[0])
        scaler.update()
        if not together:
            optimizers[1].zero_grad()
            scaler.scale(losses[1]).backward(inputs=parameters_of(optimizers[1]))
        scaler.step(optimizers[1])
        scaler.update()

    found = settings(train).get("updated_between")
    assert found is None if not noted else (found.place.path, found.function) == (__file__, "SGD")
    assert "updated_between" not in settings(train, enabled=False)


@pytest.mark.parametrize(("steps", "noted"), [({0}, False), ({0, 1}, True), ({0, 2}, False)])
def test_scaler_made_in_every_step_is_recorded(steps, noted):
    """One that is made in the first step, or in some, is no matter."""
    step = iter(range(3))

    def train(scaler, optimizers, losses):
        if next(step) in steps:
            scaler = torch.amp.GradScaler("cpu")
        scaler.scale(sum(losses)).backward()
        scaler.step(optimizers[0])

    found = settings(train).get("made_anew")
    assert found is None if not noted else found.place.path == __file__


def test_loss_scaled_twice_is_recorded():
    def twice(scaler, loss):
        return scaler.scale(scaler.scale(loss) / 2 + loss)

    assert settings(in_turn(scaled, twice))["scales_twice"].place.path == __file__
    assert "scales_twice" not in settings(in_turn(twice, twice), enabled=False)

    def summed(scaler, optimizers, losses):
        (scaler.scale(losses[0]) + scaler.scale(losses[1])).backward()
        scaler.step(optimizers[0])

    def penalized(scaler, optimizers, losses):
        weights = parameters_of(optimizers[1])
        taken = torch.autograd.grad(scaler.scale(losses[0]), weights, create_graph=True)
        scaler.scale(losses[1] + sum(each.square().sum() for each in taken) / scaler.get_scale() ** 2).backward()
        scaler.step(optimizers[1])

    assert not any("scales_twice" in settings(train) for train in (summed, penalized))


def test_unscaling_by_another_scaler_is_recorded():
    def another(scaler, optimizer):
        torch.amp.GradScaler("cpu", init_scale=4.0).step(optimizer)

    noted = settings(in_turn(scaled, scaled, another))["other_scaler"]
    assert (noted.place.path, noted.function) == (__file__, "SGD")
    assert "other_scaler" not in settings(in_turn(scaled, scaled))


def clipped_by_hand(unscales, asks=False):
    def train(scaler, optimizers, losses):
        scaler.scale(sum(losses)).backward()
        for optimizer in optimizers:
            if unscales:
                scaler.unscale_(optimizer)
            limit = scaler.get_scale() if asks else 1.0
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad.clamp_(-limit, limit)
            scaler.step(optimizer)
        scaler.update()

    return train


def test_gradient_changes_before_unscaling_are_recorded():
    assert settings(clipped_by_hand(unscales=False))["changes_scaled"].place.path == __file__
    assert "changes_scaled" not in settings(clipped_by_hand(unscales=True))
    assert "changes_scaled" not in settings(clipped_by_hand(unscales=False, asks=True))
    assert "changes_scaled" not in settings(clipped_by_hand(unscales=False), enabled=False)
    assert "unscales_twice" not in settings(clipped_by_hand(unscales=False))


def test_manual_and_scaler_unscaling_is_recorded():
    assert settings(clipped_by_hand(unscales=False, asks=True))["unscales_twice"].place.path == __file__
    assert "unscales_twice" not in settings(clipped_by_hand(unscales=True, asks=True))
