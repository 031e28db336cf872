"""The verdict on one plan from its paired runs: equivalence of the loss, and the gates."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from precaudit.model import Cause, Difference, Gate, Plan, Verdict
from precaudit.running.job import INTERNAL, RunResult
from precaudit.verification import statistics
from precaudit.verification.equivalence import equivalence
from precaudit.verification.gates import Pair, failed, gates

_OUTSIDE = "which autocast reaches with torch.amp.custom_fwd and custom_bwd only"
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""Exit codes of what others ended, such as a system without memory: no doing of the plan's."""


@dataclass(frozen=True)
class Judgement:
    """What the runs so far say of a plan; `window` are the steps whose losses were compared, `cause` says why the
    verdict is inconclusive, `chance` is the difference that float32 may have from itself."""

    verdict: Verdict
    reason: str
    margin: float | None
    difference: Difference
    gates: tuple[Gate, ...]
    horizon: int | None = None
    window: slice | None = None
    cause: Cause | None = None
    chance: float = 0.0


@dataclass(frozen=True)
class Runs:
    """Float32 runs by seed, the perturbed twins of some of them, and the candidate's runs by seed."""

    references: Mapping[int, RunResult]
    candidates: Mapping[int, RunResult]
    twins: Mapping[int, RunResult] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        return [(self.references[seed], run) for seed, run in self.candidates.items() if seed in self.references]


def _undecided(verdict: Verdict, reason: str, gates_: tuple[Gate, ...] = ()) -> Judgement:
    return Judgement(verdict, reason, None, Difference(), gates_)


def judge(runs: Runs, plan: Plan) -> Judgement:
    """The verdict on `plan`. A candidate that raised, was lost, or failed a gate fails whatever its mean loss."""
    pairs = runs.pairs
    checked = gates(pairs, plan)
    if (ended := next((run for pair in pairs for run in pair if _ended_from_outside(run)), None)) is not None:
        return replace(_undecided("inconclusive", ended.why, checked), cause="interrupted")
    if (stopped := next((run for run, _ in pairs if not run.finished), None)) is not None:
        reason = f"float32 itself stopped at step {stopped.steps} with seed {stopped.seed}: {stopped.why}"
        return replace(_undecided("inconclusive", reason, checked), cause="float32")
    for reference, candidate in pairs:
        if not candidate.finished:
            function = candidate.error.backward_of if candidate.error else None
            where = f" in {function}'s own backward pass, {_OUTSIDE}" if function else ""
            return _undecided("fail", f"the script stopped at step {candidate.steps}{where}: {candidate.why}", checked)
        if (lost := statistics.diverged(reference.losses, candidate.losses)) is not None:
            return _undecided("fail", lost.detail, checked)
    if bad := failed(checked):
        return _undecided("fail", bad[0].detail, checked)
    if pairs and not any(_differ(*pair) for pair in pairs):
        reason = "the plan changed nothing: every loss is float32's, bit for bit"
        return replace(_undecided("inconclusive", reason, checked), cause="unchanged")
    return _compare_losses(runs, pairs, checked)


def _ended_from_outside(run: RunResult) -> bool:
    return run.exit_code in _FROM_OUTSIDE or (run.error is not None and run.error.type == INTERNAL)


def _compare_losses(runs: Runs, pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement:
    references = [reference.losses for reference, _ in pairs]
    candidates = [candidate.losses for _, candidate in pairs]
    steps = min(len(losses) for losses in (*references, *candidates))
    twins = [
        (runs.references[seed].losses, twin.losses) for seed, twin in runs.twins.items() if seed in runs.references
    ]
    together = min((statistics.horizon(*pair) for pair in twins), default=steps)
    window = statistics.comparison_window(steps, min(together, steps))
    noise = statistics.repeatability(twins, window)
    margin = statistics.margin(references, window, noise)
    guard = _learned([reference for reference, _ in pairs], margin)
    all_gates = (*checked, Gate("the reference learned", guard.passed, guard.detail))
    spread = statistics.seed_spread(references, window)
    differences = statistics.relative_differences(references, candidates, window)
    result = equivalence(differences, margin, spread=spread if spread == spread else float("inf"))
    difference = Difference(result.mean, result.lower, result.upper)
    verdict: Verdict = result.decision
    reason = result.detail
    cause: Cause | None = "noise" if verdict == "inconclusive" else None
    if not guard.passed and verdict != "fail":
        verdict, cause, reason = "inconclusive", "float32", f"the float32 run proves nothing: {guard.detail}"
    chance = statistics.by_chance(twins, window, len(pairs))
    return Judgement(verdict, reason, margin, difference, all_gates, together, window, cause, chance)


def _differ(reference: RunResult, candidate: RunResult) -> bool:
    """Rounding that is in force shows in some bit of some loss."""
    return (reference.losses, reference.streams) != (candidate.losses, candidate.streams)


def _learned(references: Sequence[RunResult], margin: float) -> statistics.Guard:
    """Whether the float32 runs moved, averaged over seeds. Losses of different lines of the script (a generator's,
    a discriminator's) are looked at apart; one that moves is enough."""
    curves = [[run.losses for run in references]]
    places = references[0].streams
    if len(places) > 1:
        curves += [[run.streams[place] for run in references if place in run.streams] for place in places]
    guards = []
    for runs in curves:
        steps = min(len(losses) for losses in runs)
        mean = np.mean([losses[:steps] for losses in runs], axis=0)
        guards.append(statistics.learned(mean, margin, len(curves)))
    return next((guard for guard in guards if guard.passed), guards[0])


def screened(judgement: Judgement) -> Judgement:
    """After one pair only: a plan within the margin is screened, never verified."""
    mean, margin = judgement.difference.mean, judgement.margin
    if judgement.verdict == "fail" or mean is None or margin is None:
        return judgement
    inside = abs(mean) < margin
    return replace(
        judgement,
        verdict="screened" if inside else "inconclusive",
        cause=None if inside else judgement.cause,
    )
