"""The verdict on one plan from its paired runs: equivalence of the loss, and the gates."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from precaudit.model import Cause, Difference, Gate, Plan, Verdict
from precaudit.running.job import RunResult, ScriptError
from precaudit.verification import statistics
from precaudit.verification.equivalence import ALPHA, LOOKS, equivalence, needs_more
from precaudit.verification.gates import Pair, allowed, ended_itself, failed, gates

OUTSIDE = "which autocast handles only with torch.amp.custom_fwd and custom_bwd"
_FROM_OUTSIDE = frozenset(-getattr(signal, name, 0) for name in ("SIGKILL", "SIGTERM", "SIGHUP")) - {0}
"""Exit codes of processes that were killed from outside, by a system without memory, say."""

_STILL = 1e-4
"""Relative to their rms: if no weight moves by more, the loss cannot have changed by training."""

_BEYOND = 10.0
"""A difference that exceeds by this factor what float32 may have from itself is a plan's doing: the pairs of a plan,
which rounds in every step, scatter more than float32's, but not that much."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a plan from the runs so far.

    - `margin`, `difference`, `chance`: relative to the loss; `chance` is the mean difference that float32 may have from
      itself.
    - `horizon`: steps; `window`: the steps whose losses were compared.
    - `cause`: why the verdict is inconclusive; `settled`: more seeds would not change it.
    """

    verdict: Verdict
    reason: str
    margin: float | None
    difference: Difference
    gates: tuple[Gate, ...]
    horizon: int | None = None
    window: slice | None = None
    cause: Cause | None = None
    chance: float = 0.0
    settled: bool = False


@dataclass(frozen=True)
class Runs:
    """Float32 runs, candidate runs, and perturbed float32 runs (twins), each by seed."""

    references: Mapping[int, RunResult]
    candidates: Mapping[int, RunResult]
    twins: Mapping[int, RunResult] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        return [(self.references[seed], run) for seed, run in self.candidates.items() if seed in self.references]


def _uncompared(
    verdict: Verdict, reason: str, gates_: tuple[Gate, ...], cause: Cause | None = None, settled: bool = False
) -> Judgement:
    """A verdict without a comparison of losses."""
    return Judgement(verdict, reason, None, Difference(), gates_, cause=cause, settled=settled)


def _unchanged(what: str, gates_: tuple[Gate, ...]) -> Judgement:
    reason = f"the plan changed nothing: {what} is float32's, bit for bit"
    return _uncompared("inconclusive", reason, gates_, "unchanged")


def judge(runs: Runs, plan: Plan) -> Judgement:
    """The verdict on `plan`. A candidate that raised, diverged, or failed a gate fails whatever its mean loss."""
    pairs = runs.pairs
    checked = gates(pairs, plan)
    return (
        _cut_short(pairs, checked)
        or _broken(pairs, checked)
        or _without_training(pairs, checked)
        or _trained(runs, pairs, checked)
    )


def _cut_short(pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement | None:
    """Runs that something other than the plan ended, which say nothing about it."""
    if (ended := next((run for pair in pairs for run in pair if _ended_from_outside(run)), None)) is not None:
        return _uncompared("inconclusive", ended.why, checked, "interrupted", settled=True)
    if (stopped := next((run for run, _ in pairs if not run.finished), None)) is not None:
        reason = f"float32 itself stopped at step {stopped.steps} with seed {stopped.seed}: {stopped.why}"
        return _uncompared("inconclusive", reason, checked, "float32", settled=True)
    return None


def _broken(pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement | None:
    """What fails a plan without a look at its losses' mean."""
    for reference, candidate in pairs:
        if not candidate.finished:
            reason = f"the script stopped at step {candidate.steps}{_where(candidate.error)}: {candidate.why}"
            return _uncompared("fail", reason, checked, "raised")
        if (lost := statistics.diverged(reference.losses, candidate.losses)) is not None:
            return _uncompared("fail", lost.detail, checked)
    bad = failed(checked)
    return _uncompared("fail", bad[0].detail, checked) if bad else None


def _without_training(pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement | None:
    """Pairs in which nothing was trained, or nothing was rounded."""
    if not pairs:
        return None
    if not any(run.steps for pair in pairs for run in pair):
        reason = "no optimizer step was taken, so there is no training to compare"
        return _uncompared("inconclusive", reason, checked, "float32", settled=True)
    return None if any(_differ(*pair) for pair in pairs) else _unchanged("every loss", checked)


def _trained(runs: Runs, pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement:
    judged = _compare_losses(runs, pairs, checked)
    early = next((pair for pair in pairs if _ends_early(*pair)), None)
    if early is None or judged.verdict == "inconclusive":
        return judged
    reason = ended_itself(early[1].steps, early[0].steps)
    return _uncompared("inconclusive", reason, checked, "early", settled=True)


def _where(error: ScriptError | None) -> str:
    """The line of the script, which no other finding names where it lies outside of every module."""
    if error is None:
        return ""
    place = f" at {error.location}" if error.location else ""
    function = error.backward_of
    return f"{place} in {function}'s own backward pass, {OUTSIDE}" if function else place


def _ends_early(reference: RunResult, candidate: RunResult) -> bool:
    """Whether so many steps are missing that float32's last ones have no counterpart."""
    return candidate.steps < reference.steps - allowed(reference.steps)


def _ended_from_outside(run: RunResult) -> bool:
    """Whether a run was ended by what has nothing to do with the plan's rounding, such as a lack of memory."""
    lacks_memory = run.error is not None and run.error.is_lack_of_memory
    return run.exit_code in _FROM_OUTSIDE or run.is_ours or lacks_memory


def _compare_losses(runs: Runs, pairs: Sequence[Pair], checked: tuple[Gate, ...]) -> Judgement:
    """Compare the mean of a script's losses, and each loss by itself, which passes nothing: in the mean, one may gain
    what another loses, and a large loss hides a small one."""
    whole = _compared(runs, pairs, lambda run: run.losses)
    assert whole.margin is not None
    if whole.window and all(_same_values(*pair, whole.window) for pair in pairs):
        return _unchanged("every loss that is compared", checked)
    guard = _learned([reference for reference, _ in pairs], min(whole.margin, statistics.NOISE_LIMIT))
    gates_ = (*checked, Gate("the reference learned", guard.passed, guard.detail))
    places = _places(pairs)
    for place in places:
        alone = _compared(runs, pairs, partial(_stream, place), ALPHA / len(places))
        if (alone.verdict == "fail" != whole.verdict) or (whole.verdict == "pass" and _is_far_off(alone)):
            return replace(alone, gates=gates_, reason=f"of its losses, the one of {place}: {alone.reason}")
    judged = replace(whole, gates=gates_)
    if judged.verdict == "fail":
        return judged
    if guard.passed:
        return _limited_by_learning(judged, statistics.LEARNED_SHARE * guard.moved)
    reason = f"the float32 run proves nothing: {guard.detail}"
    judged = replace(judged, verdict="inconclusive", cause="float32", reason=reason, settled=not guard.open)
    return judged if guard.finite else replace(judged, difference=Difference())


def _is_far_off(alone: Judgement) -> bool:
    """Whether a loss that scatters between pairs too much for a decision is still farther off than float32's own."""
    mean, margin = alone.difference.mean, alone.margin
    if alone.verdict != "inconclusive" or mean is None or margin is None or not alone.chance:
        return False
    return abs(mean) > max(margin, _BEYOND * alone.chance)


def _limited_by_learning(judgement: Judgement, limit: float) -> Judgement:
    """Limit the margin by what float32 learned: with a large constant in the loss, the margin would exceed most of the
    learning. `limit` is the largest relative difference for a pass; it turns a pass into inconclusive, and never causes
    a failure."""
    if judgement.margin is None or limit >= judgement.margin:
        return judgement
    reason = f"{judgement.reason}; a tenth of what float32 learned is {limit:.3%}"
    judgement = replace(judgement, margin=limit, reason=reason)
    bounds = [abs(bound) for bound in (judgement.difference.lower, judgement.difference.upper) if bound is not None]
    if judgement.verdict == "pass" and max(bounds, default=0.0) >= limit:
        return replace(judgement, verdict="inconclusive", cause="noise")
    return judgement


def _compared(
    runs: Runs, pairs: Sequence[Pair], losses: Callable[[RunResult], statistics.Losses], alpha: float = ALPHA
) -> Judgement:
    """The judgement on one loss, without gates."""
    references, candidates = ([losses(pair[i]) for pair in pairs] for i in (0, 1))
    steps = min(len(curve) for curve in (*references, *candidates))
    known = [(runs.references[seed], twin) for seed, twin in runs.twins.items() if seed in runs.references]
    twins = [(losses(run), losses(twin)) for run, twin in known if losses(run) and losses(twin)]
    together = min((statistics.horizon(*pair) for pair in twins), default=steps)
    window = statistics.comparison_window(steps, min(together, steps))
    margin = statistics.margin(references, window, statistics.repeatability(twins, window))
    spread = statistics.seed_spread(references, window)
    differences = statistics.relative_differences(references, candidates, window)
    test = partial(equivalence, differences, alpha=alpha, spread=math.inf if math.isnan(spread) else spread)
    result = test(margin)
    if result.decision == "inconclusive" and not needs_more(len(pairs)):
        own = statistics.by_chance(twins, window, 1)
        margin = max(margin, statistics.last_margin(references, window, own))
        result = test(margin)
    difference = Difference(result.mean, result.lower, result.upper)
    cause: Cause | None = "noise" if result.decision == "inconclusive" else None
    chance = statistics.by_chance(twins, window, len(pairs))
    return Judgement(result.decision, result.detail, margin, difference, (), together, window, cause, chance)


def _places(pairs: Sequence[Pair]) -> list[str]:
    """Loss streams that are long enough in all runs to be compared; none where a script has a single one."""
    shared = [place for place in pairs[0][0].streams if all(_is_long(run, place) for pair in pairs for run in pair)]
    return shared if len(pairs[0][0].streams) > 1 else []


def _is_long(run: RunResult, place: str) -> bool:
    return len(_stream(place, run)) >= statistics.FEWEST_STEPS


def _stream(place: str, run: RunResult) -> tuple[float, ...]:
    return run.streams.get(place, ())


def _differ(reference: RunResult, candidate: RunResult) -> bool:
    """Whether any loss differs in any bit, as it does if rounding had an effect."""
    return (reference.losses, reference.streams) != (candidate.losses, candidate.streams)


def _same_values(reference: RunResult, candidate: RunResult, window: slice) -> bool:
    """Whether the compared losses are identical. A constant loss does not count: it would be so with any rounding."""
    losses = reference.losses[window]
    return losses == candidate.losses[window] and len(set(losses)) > 1


def _learned(references: Sequence[RunResult], margin: float) -> statistics.Guard:
    """Whether the float32 losses moved, averaged over seeds. Several losses of a script (a generator's, a
    discriminator's) are tested one by one; one that moves is enough."""
    farthest = max(run.end_state.farthest for run in references)
    if farthest < _STILL:
        detail = f"no weight moved by more than {farthest:.2g} times its size in float32: what moved the loss is "
        return statistics.Guard(False, f"{detail}something else, such as a schedule or the data")
    curves = [[run.losses for run in references]]
    places = references[0].streams
    if len(places) > 1:
        curves += [[run.streams[place] for run in references if place in run.streams] for place in places]
    guards = [_moved(seeds, margin, len(curves), max(LOOKS) / len(references)) for seeds in curves]
    first = next((guard for guard in guards if guard.passed), guards[0])
    return replace(first, open=any(guard.open for guard in guards))


def _moved(seeds: Sequence[statistics.Losses], margin: float, curves: int, more: float) -> statistics.Guard:
    """Whether the mean of one loss over its seeds moved; `curves` and `more` as for `statistics.learned`."""
    steps = min(map(len, seeds))
    mean = np.mean([losses[:steps] for losses in seeds], axis=0)
    guard = statistics.learned(mean, margin, curves, more)
    if guard.passed and len(seeds) > 1 and statistics.wanders(mean) and not statistics.seeds_agree(seeds):
        detail = f"{guard.detail}, but in the mean alone: each seed's loss wanders in its own way"
        return replace(guard, passed=False, detail=detail)
    return guard


def screened(judgement: Judgement) -> Judgement:
    """After one pair only: a plan within the margin is screened, never verified; noise is then no cause of doubt, a
    float32 that learned nothing still is."""
    mean, margin = judgement.difference.mean, judgement.margin
    if judgement.verdict == "fail" or mean is None or margin is None:
        return judgement
    inside = abs(mean) < margin
    return replace(
        judgement,
        verdict="screened" if inside else "inconclusive",
        cause=None if inside and judgement.cause == "noise" else judgement.cause,
    )
