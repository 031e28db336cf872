"""Gates: checks of what a loss curve doesn't show. Each compares a candidate's runs with their float32 pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from precaudit.model import Gate, Plan
from precaudit.running.job import EndState, OutputDeviation, RunResult, ScriptError
from precaudit.words import listing

Pair = tuple[RunResult, RunResult]
Check = Callable[[Sequence[Pair], Plan], Gate]
_STUCK = 0.5
"""A buffer that moves by less than this share of its way in float32 loses most of its updates to rounding."""
_STUCK_ALONE = 0.1
"""The same share with a single pair of runs: in chaotic training one run moves a buffer several times as far as the
next, which several pairs tell from rounding."""
_EARLY = 0.5
"""Share of float32's steps: a later end may be chance, as with early stopping."""
_MOST_NUMBERS = 4
"""With more different numbers of model calls per step in float32 than this, skipped batches can't be recognized."""
_BUSIER = 4.0
"""Calling the models so many times as often costs what a format gains: float8 multiplies four times as fast as tf32."""
_OR_SOLVER = "the script leaves batches out, or a solver in it takes smaller steps where values are rounded"
_SCALE_FLOOR, _SCALE_CEILING = 2.0**-10, 2.0**30
"""A loss scale below the first has collapsed; one above the second runs away, unless it overflows up there, as it does
where gradients have become that small."""


def _finite(name: str, what: str, nonfinite: Callable[[EndState], Collection[str]]) -> Check:
    """A candidate may be non-finite only where its reference is."""

    def check(pairs: Sequence[Pair], plan: Plan) -> Gate:
        ended = [(set(nonfinite(one.end_state)), set(nonfinite(two.end_state))) for one, two in pairs]
        bad = set().union(*(candidate - reference for reference, candidate in ended))
        shared = set().union(*(candidate & reference for reference, candidate in ended))
        if bad:
            return Gate(name, False, f"non-finite {what}: {listing(sorted(bad))}")
        if shared:
            return Gate(name, True, f"non-finite {what}, but in float32 as well: {listing(sorted(shared))}")
        return Gate(name, True, f"all {what} are finite")

    return check


def _lost_evaluations(state: EndState) -> list[str]:
    return [model for model, (finite, _) in state.evaluations.items() if not finite]


def refusals(pairs: Sequence[Pair], for_memory: bool = False) -> Iterator[tuple[str, ScriptError]]:
    """Models that can be called in eval mode in float32 and raise under the plan: for lack of memory, or otherwise."""
    for reference, candidate in pairs:
        for model, error in candidate.end_state.refused.items():
            if model in reference.end_state.evaluations and error.is_lack_of_memory is for_memory:
                yield model, error


def wrong_answers(pairs: Sequence[Pair], plan: Plan) -> list[tuple[str, OutputDeviation]]:
    """Models whose outputs in eval mode deviate from float32's with the same weights, the worst first."""
    found = [each for _, run in pairs for each in run.end_state.deviations.items() if each[1].is_fault(plan)]
    return sorted(found, key=lambda each: -each[1].excess(plan))


def evaluation(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """Models in eval mode: no exception and no non-finite output that float32 doesn't have, and outputs close to
    float32's with the same weights."""
    for model, error in refusals(pairs):
        return Gate("evaluation", False, f"in eval mode {model} raises, which it does not in float32: {error.short}")
    if not any(run.end_state.evaluations for pair in pairs for run in pair):
        return Gate("evaluation", True, "not looked at: no model could be called again in eval mode")
    gate = _finite("evaluation", "outputs in eval mode", _lost_evaluations)(pairs, plan)
    if gate.passed and (wrong := wrong_answers(pairs, plan)):
        model, far = wrong[0]
        said = f"in eval mode an output of {model} is off by {far.error:.1%} of its rms"
        detail = f"{said}; weights that are rounded once change it by {far.chance:.2%} in float32"
        gate = replace(gate, passed=False, detail=detail)
    states = [run.end_state for _, run in pairs]
    beside = {
        "not looked at, as memory ran out": {model for model, _ in refusals(pairs, for_memory=True)},
        "not compared with float32, as calls take too long or differ": {
            model for state in states for model in state.evaluations.keys() - state.deviations.keys()
        },
    }
    seen = [f"{why}: {listing(sorted(models))}" for why, models in beside.items() if models]
    return replace(gate, detail="; ".join((gate.detail, *seen)))


def first_lost(reference: RunResult, candidate: RunResult) -> int | None:
    """The first step with a non-finite output of a model whose outputs are always finite in float32."""
    lost, legal = candidate.end_state.lost, reference.end_state.lost
    return min((step for model, step in lost.items() if model not in legal), default=None)


def stuck_buffers(pairs: Sequence[Pair]) -> list[str]:
    """Buffers that move, in every run under the plan, less than half as far as in every float32 run; a single pair of
    runs has to differ by more."""
    names = set[str]().union(*(reference.end_state.moved for reference, _ in pairs))
    return sorted(name for name in names if _is_stuck(name, pairs))


def _is_stuck(name: str, pairs: Sequence[Pair]) -> bool:
    ways = [(one.end_state.moved.get(name, 0.0), two.end_state.moved.get(name, math.inf)) for one, two in pairs]
    share = _STUCK if len(pairs) > 1 else _STUCK_ALONE
    return max(planned for _, planned in ways) < share * min(plain for plain, _ in ways)


def moving_buffers(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """A running average whose updates are rounded away stands still, which the loss shows late."""
    stuck = stuck_buffers(pairs)
    detail = f"moved less than half as far as in float32: {listing(sorted(stuck))}" if stuck else "none stands still"
    return Gate("moving buffers", not stuck, detail)


def own_end(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """A script that checks its own loss may exit before any non-finite value is observed."""
    steps = min(candidate.steps for _, candidate in pairs)
    earliest = min(reference.steps for reference, _ in pairs)
    if steps < _EARLY * earliest:
        return Gate("own end", False, ended_itself(steps, earliest))
    return Gate("own end", True, "the script did not end by itself any earlier than in float32")


def ended_itself(step: int, in_float32: int) -> str:
    """A sentence on an early end, with both numbers of steps."""
    return f"the script ended by itself at step {step}, in float32 not before {in_float32}"


def unused_calls(calls: Sequence[int], usual: Collection[int]) -> list[int]:
    """For each step, the model calls in excess of what a float32 step takes: batches that led to no step. None are
    known where no number is usual."""
    return [count - max((each for each in usual if each <= count), default=count) for count in calls]


def usual_calls(references: Iterable[RunResult]) -> set[int]:
    """The numbers of model calls per step that occur in float32; none where they hardly repeat, as an adaptive
    solver's."""
    counts = [count for reference in references for count in reference.calls]
    usual = set(counts)
    return usual if len(usual) <= min(_MOST_NUMBERS, max(1, len(counts) / 2)) else set()


def used_batches(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """A script that skips batches with a non-finite loss hides the fault, as it learns from the other ones."""
    if (times := _busier(pairs)) >= _BUSIER:
        detail = f"most steps call the models {times:.0f} times as often as any in float32, or oftener: {_OR_SOLVER}"
        return Gate("batches", False, detail)
    usual = usual_calls(reference for reference, _ in pairs)
    if not usual:
        return Gate("batches", True, "not looked at: how often a step calls the models varies in float32 too")
    unused = max(sum(unused_calls(candidate.calls, usual)) for _, candidate in pairs)
    if unused <= _most_allowed(pairs):
        return Gate("batches", True, "every step calls the models as often as in float32")
    detail = f"{unused} calls of the models led to no step, unlike in float32: {_OR_SOLVER}"
    return Gate("batches", False, detail)


def _busier(pairs: Sequence[Pair]) -> float:
    """How many times as often a step under the plan calls the models as the busiest in float32: the median of a run,
    and the least of all runs."""
    counts = [(max(reference.calls, default=0), candidate.calls) for reference, candidate in pairs]
    return min(median(calls) / most if calls and most else 0.0 for most, calls in counts)


def skipped_steps(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """The loss scaler skips no more steps than predicted, with an allowance."""
    skips = max(len(candidate.skipped) for _, candidate in pairs)
    steps = max(candidate.steps for _, candidate in pairs)
    predicted = plan.loss_scale.predicted_skips or 0.0
    sound = skips <= math.ceil(predicted + _most_allowed(pairs))
    return Gate("skipped steps", sound, f"{skips} of {steps} steps skipped, {predicted:.1f} predicted")


def _most_allowed(pairs: Sequence[Pair]) -> float:
    return max(allowed(candidate.steps) for _, candidate in pairs)


def allowed(steps: int) -> float:
    """How many skipped steps or batches are tolerated: two, and a twentieth of the steps."""
    return 2 + 0.05 * steps


def loss_scale_range(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """The dynamic loss scale neither falls to the floor nor grows without bound."""
    runs = [candidate.scales for _, candidate in pairs if candidate.scales]
    scales = [scale for run in runs for scale in run]
    if not scales:
        return Gate("loss scale", True, "the plan needs no loss scale")
    low, high = min(scales), max(scales)
    # A loss in large units (squared prices) has a scale below one from the start.
    floor = _SCALE_FLOOR * min(1.0, plan.loss_scale.init_scale or 1.0)
    sound = low >= floor and not any(map(_runs_away, runs))
    detail = f"the scale stayed within 2^{math.log2(low):.0f} .. 2^{math.log2(high):.0f}"
    return Gate("loss scale", sound, detail if sound else f"{detail}: it fell to the floor or ran away")


def _runs_away(scales: Sequence[float]) -> bool:
    highest = max(scales)
    checked = any(after < before and before >= highest / 2 for before, after in pairwise(scales))
    return highest > _SCALE_CEILING and not checked


CHECKS: tuple[Check, ...] = (
    _finite("finite parameters", "parameters", lambda state: state.parameters),
    _finite("finite buffers", "buffers", lambda state: state.buffers),
    moving_buffers,
    _finite("finite outputs", "outputs", lambda state: state.lost),
    _finite("finite optimizer state", "optimizer states", lambda state: state.optimizer_state),
    evaluation,
    used_batches,
    own_end,
    skipped_steps,
    loss_scale_range,
)


def gates(pairs: Sequence[Pair], plan: Plan) -> tuple[Gate, ...]:
    """All gates on these pairs; () without a pair."""
    return tuple(check(pairs, plan) for check in CHECKS) if pairs else ()


def failed(results: Iterable[Gate]) -> list[Gate]:
    """The gates that failed."""
    return [gate for gate in results if not gate.passed]
