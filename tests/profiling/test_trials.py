"""Which runs a verification makes."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from precaudit.model import Plan
from precaudit.profiling.audit import Audit
from precaudit.profiling.settings import Settings
from precaudit.profiling.trials import TWIN, Trials, _needs_repair, verify
from precaudit.running.job import Job, RunResult, RunSpec
from precaudit.tracing.records import Trace
from precaudit.verification.equivalence import LOOKS
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


def test_twins_run_again_when_a_repair_changes_the_narrowest_format():
    runner, job = Noting(), Job("script", "train.py", (), ".", 10)
    reference = RunResult("reference", 0, "stopped")
    trials = Trials(Audit(job, reference, Trace()), runner, {0: reference})
    for name, seeds in (("float8_e4m3", [1, 2]), ("float8_e4m3", [3]), ("bfloat16", [1, 2])):
        trials.extend("candidate", Plan(default=name), seeds, {})
    twins = [(spec.perturbed, spec.seed) for spec in runner.specs if spec.label == TWIN]
    assert twins == [(name, seed) for name in ("float8_e4m3", "bfloat16") for seed in (0, 1, 2)]
    assert sorted(trials.twins) == [0, 1, 2]


def test_twins_are_limited_to_the_pairs_of_the_last_look():
    runner, reference = Noting(), RunResult("reference", 0, "stopped")
    trials = Trials(Audit(Job("script", "train.py", (), ".", 10), reference, Trace()), runner, {0: reference})
    trials.extend("candidate", Plan(default="bfloat16"), range(1, 40), candidates := {})
    assert sorted(trials.twins) == list(range(LOOKS[-1]))
    assert sorted(candidates) == list(range(1, 40))
    assert sorted(trials.references) == list(range(40))


def test_the_patience_of_plan_runs_follows_the_reference():
    runner, job = Noting(), Job("script", "train.py", (), ".", 10)
    reference = RunResult("reference", 0, "stopped", calls=(1500,))
    Trials(Audit(job, reference, Trace()), runner).extend("candidate", Plan("bfloat16"), [0], {})
    assert {spec.patience for spec in runner.specs if spec.plan} == {reference.patience}
    assert {spec.patience for spec in runner.specs if not spec.plan} == {float("inf")}


def scattered(label, seed, scatter, shift=0.0):
    """A run that learns, and ends where chance has it."""
    end = 1 + shift + scatter * (-1) ** seed * (1 + seed)
    curve = end + 2 * np.exp(-np.arange(40) / 3)
    return RunResult(label, seed, "stopped", 40, 40, losses=tuple(curve.tolist()))


@pytest.mark.parametrize(("chaos", "repaired"), [(0.0, True), (0.1, False)])
def test_a_difference_within_float32s_own_noise_blames_no_module(chaos, repaired):
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


def test_runs_without_a_difference_between_seeds_are_discarded():
    runner, plan, job = Fixed(), Plan("bfloat16", {"": "bfloat16"}), Job("script", "train.py", (), ".", 40)
    reference = runner(RunSpec(job, "reference"))
    found, _ = verify(Audit(job, reference, Trace()), plan, lambda _: plan, runner, Settings())
    losses = {(trial.plan, trial.seed): trial.losses for trial in found.trials}
    assert len(losses) == len(found.trials)
    for seed in (1, 2):
        assert losses["candidate-1", seed][-1] == pytest.approx(losses["reference", seed][-1], abs=1e-3)


def test_differences_of_chaotic_float32_runs_count_in_both_orders():
    """Of a run that ended at 73 and its twin at 2, either could have been the reference."""
    ends = {"reference": [10, 73, 0.1] * 3, TWIN: [10, 2, 0.1], "candidate-1": [10, 62, 0.1, 11, 9, 40, 12, 50]}
    runs = {
        label: {
            seed: RunResult(label, seed, "stopped", 40, 40, losses=(20.0,) * 20 + (float(end),) * 20)
            for seed, end in enumerate(found[:8])
        }
        for label, found in ends.items()
    }
    judgement = judge(Runs(runs["reference"], runs["candidate-1"], runs[TWIN]), Plan("bfloat16"))
    assert judgement.verdict == "inconclusive"
    assert abs(judgement.difference.mean) > judgement.margin
    assert not _needs_repair(judgement, quick=False)


def test_a_plan_that_changes_no_bit_is_tried_once():
    class Same(Noting):
        def many(self, specs):
            super().many(specs)
            return [scattered(spec.label, 0, 0.0) for spec in specs]

    runner, job = Same(), Job("script", "train.py", (), ".", 10)
    audit = Audit(job, scattered("reference", 0, 0.0), Trace(), replay=scattered("replay", 0, 0.0))
    verification, _ = verify(audit, Plan("bfloat16"), None, runner, Settings())
    assert verification.cause == "unchanged"
    assert [spec.label for spec in runner.specs] == ["candidate-1"]


def test_one_pair_is_run_where_float32_is_not_finite():
    class Lost(Noting):
        def many(self, specs):
            curves = [(*np.linspace(2, 1 + 1e-4 * bool(s.plan), 20).tolist(), *[math.nan] * 20) for s in specs]
            return [replace(run, losses=each) for run, each in zip(super().many(specs), curves, strict=True)]

    runner, job, plan = Lost(), Job("script", "train.py", (), ".", 40), Plan("bfloat16")
    (reference,) = runner.many([RunSpec(job, "reference")])
    audit = Audit(job, reference, Trace(), replay=reference)
    verification, _ = verify(audit, plan, lambda _: plan, runner, Settings())
    assert (verification.verdict, verification.cause) == ("inconclusive", "float32")
    assert [spec.label for spec in runner.specs] == ["reference", "candidate-1"]


@pytest.mark.parametrize(("noise", "runs"), [(0.0, 8), (0.1, 12)], ids=["flat", "noisy"])
def test_more_seeds_are_asked_for_only_where_they_may_show_that_float32_learned(noise, runs):
    class Hardly(Noting):
        """Loses nothing, or a tenth in noise of the same size that all seeds share."""

        def many(self, specs):
            super().many(specs)
            fall = np.linspace(1.1, 1.0, 40) if noise else np.resize([0.99, 1.01], 40)
            curve = fall + np.random.default_rng(4).normal(0, noise, 40)
            found = [curve * (1 + 1e-5 * s.seed + 1e-6 * bool(s.plan)) for s in specs]
            return [
                RunResult(spec.label, spec.seed, "stopped", 40, 40, losses=tuple(losses.tolist()))
                for spec, losses in zip(specs, found, strict=True)
            ]

    runner, job, plan = Hardly(), Job("script", "train.py", (), ".", 40), Plan("bfloat16")
    (reference,) = runner.many([RunSpec(job, "reference")])
    audit = Audit(job, reference, Trace(), replay=reference)
    verification, _ = verify(audit, plan, lambda _: plan, runner, Settings())
    assert (verification.verdict, verification.cause) == ("inconclusive", "float32")
    assert len(runner.specs) - 1 == runs
