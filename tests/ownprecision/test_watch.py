"""What a script's own low precision loses is seen where it happens, and nothing is seen where nothing is lost."""

import os

import pytest
import torch
from test_state import averaging
from torch import nn
from watched import seen, train

from precaudit.ownprecision.records import (
    LostGradient,
    NonFiniteStep,
    NonFiniteWeight,
    OpLoss,
    RunawayScale,
    StateLoss,
    TrainedLow,
)
from precaudit.running.job import Job, RunSpec
from precaudit.running.worker import run


def test_unchecked_step_on_nonfinite_gradients():
    def spoil(model):
        model[0].weight.grad[0, 0] = float("inf")

    (entry,) = seen(lambda: train(before_step=spoil), NonFiniteStep, steps=3)
    assert (entry.step, entry.fqn) == (0, "0")
    assert seen(train, NonFiniteStep, steps=3) == []


def test_unchecked_step_on_nonfinite_gradients_of_a_closure():
    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def closure():
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            model.weight.grad[0, 0] = float("inf")

        optimizer.step(closure)

    (entry,) = seen(code, NonFiniteStep, steps=1)
    assert (entry.step, entry.place.path, entry.place.line) == (0, __file__, code.__code__.co_firstlineno + 9)


def test_step_skipped_by_the_scripts_scaler_counts_as_checked():
    """Where the script casts too, it is first run with its scaler off."""

    def spoil(model):
        torch.amp.GradScaler("cpu")
        model[0].weight.grad[0, 0] = float("inf")

    assert seen(lambda: train(before_step=spoil), NonFiniteStep, steps=3) == []


def test_gradients_of_a_nonfinite_loss_are_not_reported():
    def code():
        model = nn.Linear(4, 1).bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            (model(torch.randn(8, 4).bfloat16()).square().mean() * (float("inf") if step else 1.0)).backward()
            optimizer.step()

    assert seen(code, NonFiniteStep, steps=3) == []


@pytest.mark.parametrize(("trained", "found"), [(True, True), (False, False)])
def test_frozen_low_weights_are_not_recorded(trained, found):
    def code():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4).bfloat16().requires_grad_(trained), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            model[1](model[0](torch.randn(8, 4).bfloat16()).float()).square().mean().backward()
            optimizer.step()

    assert bool(seen(code, TrainedLow)) is found
    assert bool(seen(code, StateLoss)) is found


@pytest.mark.parametrize(
    ("begin", "factor", "begins"), [(2.0**16, 4.0, [False]), (2.0**16, 1.0, []), (2.0**41, 1.0, [True])]
)
def test_unlimited_loss_scale_is_recorded(begin, factor, begins):
    """A scale that is high from the start does not run away."""

    def code():
        torch.manual_seed(0)
        model, scale = nn.Linear(4, 1), begin
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(100):
            (model(torch.randn(8, 4)).square().mean() * scale).backward()
            model.weight.grad /= scale
            model.bias.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
            scale *= factor

    assert [entry.begins for entry in seen(code, RunawayScale)] == begins


@pytest.mark.parametrize(("scale", "found"), [(2.0**24, True), (2.0**4, False)])
def test_overflowed_gradients_set_to_zero_are_reported(scale, found):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            (model(torch.randn(8, 4).half()).float().square().mean() * scale).backward()
            for parameter in model.parameters():
                parameter.grad.div_(scale).nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
            optimizer.zero_grad()

    told = [(entry.place.path, entry.step, entry.scale) for entry in seen(code, LostGradient)]
    assert told == [(__file__, 0, scale)] * found


@pytest.mark.parametrize(("scale", "found"), [(2.0**30, True), (2.0**4, False)])
def test_gradients_that_overflow_in_autocast_under_a_scale_by_hand_are_reported(scale, found):
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(4):
            with torch.autocast("cpu", torch.float16):
                out = model(torch.randn(8, 4))
            (out.float().square().mean() * scale).backward()
            if all(p.grad.isfinite().all() for p in model.parameters()):
                optimizer.step()
            optimizer.zero_grad()

    entries = seen(code, LostGradient, precision="as-written")
    told = [(entry.place.path, entry.dtype, entry.scale) for entry in entries]
    assert told == [(__file__, "float32", scale)] * found


def test_divided_loss_does_not_count_as_scaled():
    def code():
        model, count = nn.Linear(4, 1), torch.full((70_000,), 1.0).half().sum(dtype=torch.float16)
        (model(torch.randn(8, 4)).square().sum() / count).backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()

    assert seen(code, RunawayScale) == []


def test_only_runs_as_written_are_watched():
    assert seen(averaging(0.999, torch.bfloat16, True), StateLoss, precision="float32") == []
    assert seen(averaging(0.999, torch.bfloat16, True), StateLoss, precision="as-written") != []


def test_own_casts_do_not_count_as_the_scripts():
    every = frozenset(range(5))
    spec = RunSpec(
        Job("script", "train.py", (), os.getcwd(), 5),
        "x",
        audited=every,
        shadowed=every,
        formats=("bfloat16", "float16"),
    )
    result = run(spec, train)
    assert result.trace.ops[0].local_error["bfloat16"] > 0
    assert not result.own_precision.casts
    assert not result.own_precision.low


def test_sparse_gradients_are_watched():
    def code():
        torch.manual_seed(0)
        model = nn.Embedding(50, 3, sparse=True)
        optimizer = torch.optim.SparseAdam(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randint(50, (8,))).square().mean().backward()
            if step == 2:
                model.weight.grad = model.weight.grad * float("inf")
            optimizer.step()

    (entry,) = seen(code, NonFiniteStep, steps=4)
    assert entry.step == 2


@pytest.mark.parametrize(("growth", "told"), [(float("nan"), True), (1e-3, False)])
def test_nonfinite_weights_written_by_the_script_are_reported(growth, told):
    """As a climb to the worst neighbour does, of gradients that overflowed; what an optimizer writes is its own."""

    def before_step(model):
        with torch.no_grad():
            model[2].weight.add_(growth * model[2].weight.grad)

    entries = seen(lambda: train(before_step=before_step), NonFiniteWeight, steps=3)
    assert [(entry.fqn, entry.op, entry.step, entry.place.path) for entry in entries] == (
        [("2", "add", 0, __file__)] if told else []
    )


def test_own_generator_is_drawn_from_once():
    drawn = []

    def code():
        own = torch.Generator().manual_seed(0)
        train(after_step=lambda model: drawn.append(torch.randn(4, dtype=torch.float16, generator=own)))

    seen(code, OpLoss, steps=12)
    own = torch.Generator().manual_seed(0)
    expected = [torch.randn(4, dtype=torch.float16, generator=own) for _ in drawn]
    assert len(drawn) == 11
    assert all(map(torch.equal, drawn, expected))


def clamped(parameters):
    for parameter in parameters:
        parameter.grad.clamp_(-1, 1)


def replaced(parameters):
    for parameter in parameters:
        parameter.grad = parameter.grad.clamp(-1, 1)


def by_data(parameters):
    for parameter in parameters:
        parameter.grad.data.mul_(0.5)


def all_at_once(parameters):
    torch._foreach_mul_([parameter.grad for parameter in parameters], 0.5)


def into(parameters):
    for parameter in parameters:
        torch.clamp(parameter.grad, -1, 1, out=parameter.grad)


def norm_taken(parameters):
    for parameter in parameters:
        torch.mul(parameter.grad, 2, out=torch.empty_like(parameter.grad)).norm()


@pytest.mark.parametrize("change", [clamped, replaced, by_data, all_at_once, into, norm_taken, list])
def test_gradient_changes_of_the_script_have_their_line(change):
    """Neither the scaler's unscaling, nor the step, nor setting them to zero is one."""

    def code():
        model, scaler = nn.Linear(4, 1), torch.amp.GradScaler("cpu", init_scale=16.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(9):
            optimizer.zero_grad(set_to_none=False)
            scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
            change(list(model.parameters()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()

    spec = RunSpec(Job("script", "train.py", (), os.getcwd(), 4), "x", audited=frozenset({0}), precision="as-written")
    place = run(spec, code).own_precision.changes_gradients
    if change in (norm_taken, list):
        assert place is None
    else:
        first = change.__code__.co_firstlineno
        assert place.path == __file__
        assert first < place.line <= first + 2
