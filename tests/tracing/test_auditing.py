"""Auditing somebody's own loop: sampled, un-scaled, exact, and gone afterwards."""

import pytest
import torch
from torch import nn
from training_styles import numbers

from precaudit.tracing.auditing import Auditing


def trained(model, optimizer, steps=4, scaler=None):
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(numbers(step, 5, 4)).square().mean()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def layer(auditing, fqn):
    return next(each for each in auditing.trace().layers if each.fqn == fqn)


@pytest.mark.parametrize(("every", "recorded"), [(1, 4), (2, 2), (3, 2), (10, 1)])
def test_every_nth_step_is_recorded(every, recorded):
    model, optimizer = make()
    auditing = Auditing(model, optimizer, every)
    auditing.start()
    trained(model, optimizer)
    auditing.stop()
    assert auditing.steps == 4
    assert auditing.trace().audited_steps == recorded
    assert layer(auditing, "0").tensor("activation").stats.numel == recorded * 20


def test_training_is_exact_and_nothing_stays():
    model, optimizer = make()
    expected = trained(model, optimizer)
    model, optimizer = make()
    auditing = Auditing(model, optimizer, 1)
    auditing.start()
    assert trained(model, optimizer) == expected
    auditing.stop()
    assert all(not p._backward_hooks for p in model.parameters())
    counted = auditing.trace()
    trained(model, optimizer)
    assert auditing.trace() == counted


def test_gradients_are_recorded_without_the_scaler_s_scale():
    plain, scaled = make(), make()
    first, second = Auditing(*plain, 1), Auditing(*scaled, 1)
    first.start()
    trained(*plain)
    first.stop()
    second.start()
    trained(*scaled, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    second.stop()
    for fqn in ("0", "2"):
        for role in ("weight_grad", "activation_grad"):
            assert layer(first, fqn).tensor(role).stats == layer(second, fqn).tensor(role).stats


def test_other_models_are_no_business_of_ours():
    model, optimizer = make()
    other = nn.Linear(4, 4)
    auditing = Auditing(model, optimizer, 1)
    auditing.start()
    other(numbers(0, 5, 4)).sum().backward()
    trained(model, optimizer)
    auditing.stop()
    assert {each.fqn for each in auditing.trace().layers} == {"0", "1", "2"}


def test_without_an_optimizer_a_backward_pass_is_a_step():
    model, _ = make()
    auditing = Auditing(model, None, 1)
    auditing.start()
    for step in range(3):
        model(numbers(step, 5, 4)).sum().backward()
    auditing.stop()
    assert auditing.steps == 3


def test_it_may_start_again():
    model, optimizer = make()
    auditing = Auditing(model, optimizer, 1)
    for _ in range(2):
        auditing.start()
        trained(model, optimizer, steps=2)
        auditing.stop()
        trained(model, optimizer, steps=1)
    assert auditing.steps == 4
    assert layer(auditing, "0").tensor("weight_grad", "weight").stats.numel == 4 * 16
