"""Which runs a verification makes."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from precaudit.model import Plan
from precaudit.profiling.audit import Audit
from precaudit.profiling.trials import TWIN, Trials, _needs_repair, verify
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.tracing.records import Trace
from precaudit.verification.verdict import Runs, judge


@dataclass
class Noting:
    """A runner that runs nothing and keeps what it was asked for."""

    specs: list[RunSpec] = field(default_factory=list)

    def __call__(self, spec):
        return self.many([spec])[0]

    def many(self, specs):
        self.specs += specs
        return [RunResult(spec.label, spec.seed, "stopped") for spec in specs]


def test_float32_is_perturbed_anew_when_a_repair_changes_the_plan_s_narrowest_format():
    runner, job = Noting(), Job("script", "train.py", (), ".", 10)
    reference = RunResult("reference", 0, "stopped")
    trials = Trials(Audit(job, reference, Trace()), "emulated", runner, {0: reference})
    for name, seeds in (("float8_e4m3", [1, 2]), ("float8_e4m3", [3]), ("bfloat16", [1, 2])):
        trials.extend("candidate", Plan(default=name), seeds, {})
    twins = [(spec.perturbed, spec.seed) for spec in runner.specs if spec.label == TWIN]
    assert twins == [(name, seed) for name in ("float8_e4m3", "bfloat16") for seed in (0, 1, 2)]
    assert sorted(trials.twins) == [0, 1, 2]


def scattered(label, seed, scatter, shift=0.0):
    """A run that learns, and ends where chance has it."""
    end = 1 + shift + scatter * (-1) ** seed * (1 + seed)
    curve = end + 2 * np.exp(-np.arange(40) / 3)
    return RunResult(label, seed, "stopped", 40, 40, losses=tuple(curve.tolist()))


@pytest.mark.parametrize(("chaos", "repaired"), [(0.0, True), (0.1, False)])
def test_a_doubt_as_large_as_that_of_float32_itself_blames_no_module(chaos, repaired):
    seeds = range(8)
    references = {seed: scattered("reference", seed, 0.0) for seed in seeds}
    candidates = {seed: scattered("candidate-1", seed, 0.05, shift=0.05) for seed in seeds}
    twins = {seed: scattered(TWIN, seed, chaos) for seed in range(3)}
    judgement = judge(Runs(references, candidates, twins), Plan("bfloat16"))
    assert judgement.verdict == "inconclusive"
    assert abs(judgement.difference.mean) > judgement.margin
    assert _needs_repair(judgement, quick=False) is repaired


class Fixed(Noting):
    """A script that fixes its seeds: only jittered weights make another run."""

    def many(self, specs):
        curves = [scattered(s.label, 1 + s.seed if s.jitter else 0, 0.01, 1e-4 * bool(s.plan)) for s in specs]
        return [replace(run, seed=spec.seed) for run, spec in zip(curves, specs, strict=True)]


def test_runs_that_a_seed_did_not_change_are_given_up():
    runner, plan, job = Fixed(), Plan("bfloat16", {"": "bfloat16"}), Job("script", "train.py", (), ".", 40)
    reference = runner(RunSpec(job, "reference"))
    found, _ = verify(Audit(job, reference, Trace()), plan, lambda _: plan, "emulated", runner, 3, False)
    losses = {(trial.plan, trial.seed): trial.losses for trial in found.trials}
    assert len(losses) == len(found.trials)
    for seed in (1, 2):
        assert losses["candidate-1", seed][-1] == pytest.approx(losses["reference", seed][-1], abs=1e-3)
