"""The lines that a log gets while runs go on."""

from __future__ import annotations

import re

import pytest

from precaudit.commands.progress import RunProgress
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
            progress(spec, RunResult(label, 1, "running", steps))
    line = capsys.readouterr().err
    assert re.fullmatch(rf"precaudit: \d+ s: {label}, seed 1: 60 steps{re.escape(purpose)}\n", line)
