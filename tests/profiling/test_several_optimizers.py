"""Scripts with more than one optimizer: each has its turn, or all step on the gradients of one backward pass."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from precaudit.model import Plan
from precaudit.profiling.bisect import Search, contributions
from precaudit.profiling.clock import Clock
from precaudit.profiling.schedule import schedule
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.running.worker import run
from precaudit.tracing.records import GradientDifference

JOB = Job("script", "train.py", (), os.getcwd(), 12)
PLAN = Plan("bfloat16", {"": "bfloat16", "0": "bfloat16", "1": "bfloat16", "2": "bfloat16"})


def one_loss():
    """Muon for the body and AdamW for the head, say."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.01)]
    while True:
        model.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def in_turn():
    """A GAN's way: each optimizer has a loss of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.01)]
    while True:
        for optimizer in optimizers:
            model.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()


def probed(code, folder, compare):
    steps = frozenset(range(8))
    reference = run(RunSpec(JOB, "reference", probe_dir=str(folder), probe_save=steps), code)
    labelled = {step: ("a", PLAN) for step in compare}
    return reference, run(RunSpec(JOB, "replay", probe_dir=str(folder), probe_compare=labelled), code)


def test_each_optimizer_on_one_loss_is_probed_and_stays_on_the_float32_path(tmp_path):
    reference, replay = probed(one_loss, tmp_path, (2, 4))
    found = {difference.fqn: difference for difference in replay.differences}
    assert set(found) == {"model.0", "model.2"}
    for difference in found.values():
        assert difference.evaluations == 2
        assert 0 < difference.delta < 1e-3 * difference.gradient
        assert difference.noise > 0
    assert replay.losses[3] == reference.losses[3]
    assert replay.losses[5:] == reference.losses[5:]


def test_noise_is_between_batches_of_one_optimizer(tmp_path):
    _, replay = probed(in_turn, tmp_path, (2, 3, 4, 5))
    assert {d.fqn: (d.evaluations, d.noise > 0) for d in replay.differences} == {
        "model.0": (2, True),
        "model.2": (2, True),
    }


@pytest.mark.parametrize("steps", [20, 60, 100])
def test_both_optimizers_steps_are_audited_and_shadowed(steps):
    planned = schedule(steps, ("bfloat16", "float16"))
    for chosen in (planned.audited, planned.shadowed):
        turns = [step % 2 for step in chosen if step < steps]
        assert min(turns.count(0), turns.count(1)) * 2 + 1 >= max(turns.count(0), turns.count(1))


@pytest.mark.parametrize("steps", [10, 16, 25, 60, 100])
def test_probed_steps_come_in_pairs(steps):
    for probed in schedule(steps, ("bfloat16", "float16")).probed.values():
        assert (probed[0] % 2, len(probed) % 2) == (0, 0)


def test_an_error_of_the_generator_in_the_other_optimizers_step_is_blamed_on_it():
    """What is computed in an even step, the odd one takes: alone, neither shows the culprit."""

    def answer(spec):
        differences = []
        for step, (label, _) in spec.probe_compare.items():
            before = spec.probe_compare.get(step - 1)
            errs = step % 2 and before is not None and before[1].modules["2"] == "bfloat16"
            differences.append(GradientDifference(label, "", 1, 0.1 if errs else 1e-6, 1.0, 1.0, 0.0, 1.0))
        return RunResult("bisect", 0, "stopped", differences=tuple(differences))

    spec = RunSpec(JOB, "replay", probe_save=frozenset(range(1, 10)))
    runner = SimpleNamespace(many=lambda specs: list(map(answer, specs)))
    assert [item.fqn for item in contributions(Search(spec, PLAN, runner))] == ["2"]


@pytest.mark.parametrize(("wall", "stepping"), [(4.0, 0.4), (2.0, 0.4), (1.5, 0.3)])
def test_startup_does_not_count_as_step_time(monkeypatch, wall, stepping):
    """Two runs of a second each, two tenths of it in steps, one after the other or beside each other."""
    now = iter((10.0, 10.0 + wall))
    monkeypatch.setattr("precaudit.profiling.clock.time.perf_counter", lambda: next(now))

    class Results:
        def many(self, specs):
            return [RunResult("reference", 0, "stopped", 2, step_seconds=(0.1, 0.1), seconds=1.0) for _ in specs]

    clock = Clock(Results())
    clock.many([RunSpec(JOB, "reference"), RunSpec(JOB, "reference")])
    assert clock.performance(10.0, 1.0)["seconds_startup"] == pytest.approx(9.0 - stepping)


def test_plain_time_is_that_of_short_and_long_steps():
    class Results:
        def many(self, specs):
            return [RunResult("reference", 0, "stopped", 6, step_seconds=(9.0, *[1.0, 0.1] * 3)) for _ in specs]

    clock = Clock(Results())
    clock.many([RunSpec(JOB, "reference"), RunSpec(JOB, "reference")])
    assert clock.performance(30.0, 0.0)["seconds_plain_steps"] == pytest.approx(12 * 0.55)
