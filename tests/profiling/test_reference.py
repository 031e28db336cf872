"""The float32 run of a script, and whose fault its failure is."""

from dataclasses import replace

import pytest
import torch

from precaudit.model import Location
from precaudit.ownprecision.records import Cast, OwnPrecision
from precaudit.profiling.reference import in_float32
from precaudit.running import worker
from precaudit.running.job import INTERNAL, Job, RunResult, RunSpec, ScriptError
from precaudit.running.uninstrumented import uninstrumented

JOB = Job("script", "train.py", (), ".", 20)


def failed(steps, kind="ValueError", text="boom"):
    return RunResult("reference", 0, "failed", steps, error=ScriptError(kind, text, f"Traceback ...\n{kind}: {text}"))


@pytest.mark.parametrize(
    ("alone", "ours"),
    [
        (RunResult("alone", 0, "stopped", 10), True),
        (RunResult("alone", 0, "ended", 7), True),
        (failed(7), False),
        (RunResult("alone", 0, "interrupted", 2), False),
        (RunResult("alone", 0, "killed", 2), False),
    ],
)
def test_a_failure_that_the_script_alone_does_not_have_is_precaudits(alone, ours):
    runs = []

    def runner(spec):
        runs.append(spec)
        return alone if spec.runs is uninstrumented else failed(7)

    found = in_float32(RunSpec(JOB, "reference"), runner)
    assert found.run.is_ours is ours
    told = "ValueError: boom. Without precaudit the script does not fail" if ours else "boom"
    assert found.run.error.message.startswith(told)
    assert "Traceback ..." in found.run.error.traceback
    first, beside = ("reference", 20), ("alone", 10)
    told = [first, beside, first, beside, first] if ours else [first, beside]
    assert [(spec.label, spec.job.steps) for spec in runs] == told


@pytest.mark.parametrize("again", [RunResult("reference", 0, "stopped", 20), failed(9), failed(7, "KeyError")])
@pytest.mark.parametrize("times", [1, 2])
def test_a_random_failure_is_tried_again(again, times):
    runs = iter([failed(7), RunResult("alone", 0, "stopped", 10)] * times + [again])
    found = in_float32(RunSpec(JOB, "reference"), lambda spec: next(runs))
    assert (found.run, found.first) == (again, again)


def test_a_failure_of_the_script_alone_is_its_own():
    runs = iter([failed(0), RunResult("alone", 0, "stopped", 3), failed(0), failed(0)])
    assert not in_float32(RunSpec(JOB, "reference"), lambda spec: next(runs)).run.is_ours


def test_a_script_that_needs_its_own_autocast_gets_a_hint():
    run = replace(failed(0), own_precision=OwnPrecision(autocast="bfloat16"))
    alone = RunResult("alone", 0, "stopped", 3)
    found = in_float32(RunSpec(JOB, "reference"), lambda spec: alone if spec.runs is uninstrumented else run).run
    assert found.is_ours
    assert "it may need its own autocast" in found.error.message


def test_a_script_that_fails_because_of_its_casts_runs_without_them():
    """As where an id that a cast rounds up is no row of a table."""
    own = OwnPrecision(casts=[Cast(Location("train.py", 9), "float16")])
    first = replace(failed(0, "IndexError"), own_precision=own)
    exact = RunResult("reference", 0, "stopped", 20)
    found = in_float32(RunSpec(JOB, "reference"), lambda spec: exact if spec.neutralize else first)
    assert (found.run, found.first, found.spec.neutralize) == (exact, first, True)


@pytest.mark.parametrize("run", [failed(7, "MemoryError"), failed(0, INTERNAL), RunResult("", 0, "stopped", 20)])
def test_other_endings_are_not_tried_again(run):
    runs = []
    assert in_float32(RunSpec(JOB, "reference"), lambda spec: runs.append(spec) or run).run == run
    assert len(runs) == 1


def test_an_uninstrumented_run_counts_steps_and_draws_the_same_numbers():
    drawn = []

    def train():
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        while True:
            drawn.append(torch.rand(()).item())
            model(torch.randn(4, 2)).sum().backward()
            optimizer.step()

    job = Job("script", "", (), ".", 3)
    results = [run(RunSpec(job, "alone", seed=5), train) for run in (uninstrumented, worker.run)]
    assert [(result.status, result.steps) for result in results] == [("stopped", 3)] * 2
    assert drawn[:3] == drawn[3:]
