"""The lines that a log gets while runs go on."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from precaudit.commands import progress
from precaudit.commands.progress import Forecast, RunProgress
from precaudit.profiling.settings import Settings
from precaudit.running.job import Job, RunResult, RunSpec

JOB = Job("script", "train.py", (), ".", 60)


@pytest.mark.parametrize(
    ("label", "audited", "purpose"),
    [
        ("reference", {0}, " (float32, every layer measured)"),
        ("reference", (), " (float32)"),
        ("reference-perturbed", (), " (float32 from weights rounded once)"),
        ("candidate-2", (), " (training with the plan)"),
        ("check", {0}, " (every layer measured)"),
        ("of another version", (), ""),
    ],
)
def test_a_run_is_told_once_with_its_purpose_and_when_it_began(capsys, label, audited, purpose):
    spec = RunSpec(JOB, label, 1, audited=frozenset(audited))
    with RunProgress() as progress:
        for steps in (1, 30, 60):
            progress(spec, RunResult(label, 1, "killed" if steps < 60 else "stopped", steps))
    line = capsys.readouterr().err
    assert re.fullmatch(rf"precaudit: \d+ s: {label}, seed 1: 60 steps{re.escape(purpose)}\n", line)


def test_a_run_that_is_repeated_is_told_again(capsys):
    """Such as the reference of a script that takes fewer steps than it may: its steps are chosen anew."""
    short = replace(JOB, steps=15)
    with RunProgress() as progress:
        for job in (JOB, short):
            for status in ("killed", "ended"):
                progress(RunSpec(job, "reference"), RunResult("reference", 0, status, 15))
    told = capsys.readouterr().err
    assert [int(steps) for steps in re.findall(r"(\d+) steps", told)] == [60, 15]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the forecast's clock shows; a test turns it."""
    shown = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: shown[0])
    return shown


def ran(told, label, seed, steps):
    told.note(RunSpec(JOB, label, seed), RunResult(label, seed, "killed" if steps < 60 else "stopped", steps))


@pytest.mark.parametrize(
    ("settings", "runs"),
    [(Settings(), 11), (Settings(seeds=5), 17), (Settings(quick=True), 4), (Settings(verify=False), 3)],
)
def test_the_time_to_go_is_that_of_the_runs_left_at_the_pace_so_far(clock, settings, runs):
    told = Forecast(settings)
    ran(told, "reference", 0, 0)
    assert told.to_go(60) == ""  # no step is done
    clock[0] += 6.0
    ran(told, "reference", 0, 60)
    assert told.to_go(60) == f"about {6 * (runs - 1)} s to go"


@pytest.mark.parametrize(("parallel", "beside"), [(1, 8), (2, 4), (8, 1), (20, 1)])
def test_runs_that_will_go_on_beside_each_other_are_not_forecast_one_after_the_other(clock, parallel, beside):
    """Three candidates, three twins and two more references do, but neither the replay nor the timing."""
    told = Forecast(Settings(), parallel)
    ran(told, "reference", 0, 0)
    clock[0] += 6.0
    ran(told, "reference", 0, 60)
    assert told.to_go(60) == f"about {6 * (2 + beside)} s to go"


def test_the_pace_is_that_of_one_run_where_several_go_on(clock):
    told = Forecast(Settings(verify=False), 2)
    for steps in (0, 60):
        for seed in (0, 1):
            ran(told, "reference", seed, steps)
        clock[0] += 6.0 if steps == 0 else 0.0
    assert told.to_go(60) == "about 12 s to go", "the replay and the timing, 6 s each"


def test_a_repair_adds_its_runs_to_the_time_to_go(clock):
    told = Forecast(Settings(verify=False))
    ran(told, "reference", 0, 0)
    clock[0] += 60.0
    ran(told, "reference", 0, 60)
    assert told.to_go(60) == "about 2 min to go"
    ran(told, "candidate-2", 0, 0)
    assert told.to_go(60) == "about 3 min to go"


def test_the_runs_of_a_search_do_not_slow_the_pace(clock):
    told = Forecast(Settings(verify=False))
    for label in ("reference", *["bisect"] * 8):
        ran(told, label, 0, 0)
        clock[0] += 6.0
        ran(told, label, 0, 60)
    assert told.to_go(60) == "about 12 s to go", "the replay and the timing"


def test_what_a_search_takes_is_not_forecast(capsys, clock):
    with RunProgress(Forecast(Settings(verify=False))) as progress:
        progress(RunSpec(JOB, "reference", 0), RunResult("reference", 0, "killed", 0))
        clock[0] += 6.0
        progress(RunSpec(JOB, "reference", 0), RunResult("reference", 0, "stopped", 60))
        progress(RunSpec(JOB, "bisect", 0), RunResult("bisect", 0, "killed", 0))
    assert capsys.readouterr().err.endswith("(which modules are to blame); about 12 s to go after this search\n")


def test_a_run_that_ends_early_leaves_no_steps_to_go(clock):
    told = Forecast(Settings(verify=False))
    ran(told, "reference", 0, 0)
    clock[0] += 5.0
    told.note(RunSpec(JOB, "reference", 0), RunResult("reference", 0, "ended", 50))
    assert told.to_go(50) == "about 10 s to go"


def test_the_log_tells_the_time_to_go_behind_a_runs_purpose(capsys, clock):
    with RunProgress(Forecast(Settings())) as progress:
        progress(RunSpec(JOB, "reference", 0), RunResult("reference", 0, "killed", 0))
        clock[0] += 6.0
        progress(RunSpec(JOB, "reference", 0), RunResult("reference", 0, "stopped", 60))
        progress(RunSpec(JOB, "candidate-1", 0), RunResult("candidate-1", 0, "killed", 0))
    assert capsys.readouterr().err.endswith("60 steps (training with the plan); about 60 s to go\n")
