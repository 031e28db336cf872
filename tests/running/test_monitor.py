"""Which losses are a step's, and which calls led to it."""

import threading

import pytest
import torch
from small_runs import spec, train, training
from torch import nn

from precaudit.model import Plan
from precaudit.running.job import RunResult
from precaudit.running.worker import run


def test_first_loss_of_a_closure_is_the_step_s():
    first = []

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        while True:
            evaluations = []

            def closure(evaluations=evaluations):
                optimizer.zero_grad()
                loss = model(torch.ones(3, 4)).square().mean()
                loss.backward()
                evaluations.append(loss.item())
                return loss

            try:
                optimizer.step(closure)
            finally:
                first.append(evaluations[0])

    result = run(spec(), code)
    assert result.losses == pytest.approx(first)
    assert result.steps == 6 < result.backward_calls


def test_micro_batches_are_averaged():
    losses = []

    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            for _ in range(3):
                loss = model(torch.randn(3, 4)).square().mean()
                loss.backward()
                losses.append(loss.item())
            optimizer.step()

    result = run(spec(), code)
    assert result.backward_calls == 18
    assert result.losses == pytest.approx([sum(losses[i : i + 3]) / 3 for i in range(0, 18, 3)], rel=1e-6)


def test_a_script_that_waits_for_a_better_batch_for_ever_is_stopped_under_a_plan():
    """It leaves out every batch whose loss isn't finite, and in this format none is."""

    def code():
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
        for _ in range(1100):
            model(torch.ones(3, 4))

    reference = run(spec(), code)
    assert (reference.status, reference.calls) == ("ended", (1, 1, 1, 1100))
    result = run(spec(precision="plan", plan=Plan("bfloat16", {"": "bfloat16"}), patience=1000), code)
    assert (result.status, result.calls) == ("stopped", (1, 1, 1, 1001))


@pytest.mark.parametrize(("calls", "patience"), [((), 1000), ((1, 2), 1000), ((1500,), 75_000)])
def test_a_script_may_call_its_models_as_often_as_float32_does(calls, patience):
    """An agent calls its policy once for each step of its surroundings, thousands of times for one of training."""
    assert RunResult("reference", 0, "ended", calls=calls).patience == patience


def test_losses_of_one_line_are_told_apart_by_their_optimizers():
    """A function that makes a step, or a library's: what a discriminator loses its generator would gain."""

    def code():
        model = nn.Linear(4, 1)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
        while True:
            for sign, optimizer in zip((1, -1), optimizers, strict=True):
                (sign * model(torch.randn(3, 4)).square().mean()).backward()
                optimizer.step()

    def anew():
        model, kept = nn.Linear(4, 1), []
        while True:
            kept.append(torch.optim.SGD(model.parameters(), lr=0.1))
            model(torch.randn(3, 4)).square().mean().backward()
            kept[-1].step()

    result = run(spec(), code)
    assert result.turns == (1, 2, 1, 2, 1, 2)
    (first, positive), (second, negative) = result.streams.items()
    assert first.endswith("optimizer 1")
    assert second.endswith("optimizer 2")
    assert (min(positive) > 0, max(negative) < 0, len(positive), len(negative)) == (True, True, 3, 3)
    single = run(spec(), anew)
    assert [len(losses) for losses in single.streams.values()] == [6]
    assert single.turns == ()


@pytest.mark.parametrize("neutralize", [False, True])
def test_casts_of_a_thread_that_trains_are_seen_and_switched_off(neutralize):
    """A function mode is on in one thread: the float32 reference of such a script was in half precision."""
    seen = []

    def code():
        thread = threading.Thread(target=train, kwargs={"steps": 3, "forward": half})
        thread.start()
        thread.join()

    def half(model, x):
        seen.append(x.half().dtype)
        return model(x)

    result = run(spec(audited=frozenset({0}), neutralize=neutralize), code)
    assert set(seen) == {torch.float32 if neutralize else torch.float16}
    assert bool(result.own_precision.casts) is not neutralize


@pytest.mark.parametrize("scaled", [lambda x: x, lambda x: x * 2.0**12, lambda x: torch.tensor(2.0**12) * x])
def test_a_loss_scale_that_the_script_keeps_is_no_part_of_the_loss(scaled):
    """As it halves where gradients overflow, losses of two precisions would seem far apart."""

    code = training(lambda: nn.Linear(4, 1), lambda model: scaled(((model(torch.ones(3, 4)) - 3) ** 2).mean()))
    result = run(spec(), code)
    assert 1 < result.losses[0] < 100
    assert result.streams.popitem()[1] == result.losses


def test_calls_that_led_to_each_step_are_counted():
    """Not those without gradients, nor those of a closure, which may search for its step."""

    def code():
        model = nn.Sequential(nn.Linear(4, 1))
        optimizer = torch.optim.LBFGS(model.parameters())
        for step in range(6):
            for _ in range(1 + step % 3):
                loss = model(torch.randn(3, 4)).square().mean()
            with torch.no_grad():
                model(torch.ones(3, 4))
            loss.backward(retain_graph=True)
            optimizer.step(lambda: model(torch.ones(3, 4)).square().mean())

    assert run(spec(), code).calls == (1, 2, 3, 1, 2, 3)


def test_losses_of_different_lines_are_told_apart():
    def code():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            (-model(torch.randn(3, 4)).square().mean()).backward()
            optimizer.step()

    streams = run(spec(), code).streams
    assert [len(losses) for losses in streams.values()] == [3, 3]
    positive, negative = streams.values()
    assert all(loss > 0 for loss in positive)
    assert all(loss < 0 for loss in negative)


def test_without_an_optimizer_backward_passes_are_steps():
    def code():
        weight = torch.ones(3, requires_grad=True)
        model = nn.Linear(3, 1)
        while True:
            model(weight[None]).sum().backward()

    result = run(spec(), code)
    assert (result.steps, result.counted) == (6, "backward calls")
