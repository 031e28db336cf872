"""Findings from the entries of a run as written: what its own low precision has lost, by place and kind."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import singledispatch
from typing import Any

from precaudit.finding import finding
from precaudit.model import Finding, Severity
from precaudit.ownprecision.records import (
    ChangedIntegers,
    Entry,
    GradientSumLoss,
    Kept,
    NonFiniteStep,
    NonFiniteWeight,
    Overflow,
    RowSumLoss,
    RunawayScale,
    StateLoss,
    VainDecay,
)
from precaudit.running.job import RunResult
from precaudit.tracing.ops import CASTS
from precaudit.tracing.records import Trace

_STATE_LIMIT = 0.2
"""A state has lost its changes if rounding is this share of their energy."""
_SUM_LIMIT = 0.01
"""A sum has lost addends if the squared relative error exceeds this: a tenth in rms."""

CAP = "cap the loss scale (torch's stays useful up to 2^24)"
_BEGIN = "begin with a lower scale: torch's own init_scale is 2^16"


def causes_in(reference: RunResult, run: RunResult, severity: Severity) -> list[Finding]:
    """Findings from all entries of a run as written."""
    ended = run.steps if run.finished and run.steps >= reference.steps else math.inf
    seen = [_timed(_named(entry, run.trace), ended) for entry in run.own_precision.low]
    stagnant = {(e.fqn, e.buffer) for e in seen if isinstance(e, StateLoss) and e.lost >= _STATE_LIMIT}
    reported = [e for e in seen if not isinstance(e, VainDecay) or (e.fqn, e.buffer) not in stagnant]
    return [found for entry in reported if (found := _described(entry, severity)) is not None]


def _timed(entry: Entry, ended: float) -> Entry:
    """The entry, marked where it is later than all steps: models are called to evaluate then."""
    return replace(entry, late=entry.step >= ended) if isinstance(entry, Overflow) else entry


def kept_in(run: RunResult) -> list[StateLoss]:
    """The states whose changes lose anything by rounding, those that lose most first."""
    states = (_named(each, run.trace) for each in run.own_precision.entries(StateLoss))
    return sorted((each for each in states if isinstance(each, StateLoss) and each.lost > 0), key=lambda e: -e.lost)


def _named(entry: Entry, trace: Trace | None) -> Entry:
    """The entry with the module's name as in the report: two models may have the same names."""
    if trace is None or not isinstance(entry, Kept) or entry.model is None or entry.fqn is None:
        return entry
    return replace(entry, fqn=trace.name(entry.model, entry.fqn))


@singledispatch
def _described(entry: Entry, severity: Severity) -> Finding | None:
    """The finding on an entry; None on one that lost little, or that is a cause only where nothing else is."""
    return None


@_described.register
def _state(entry: StateLoss, severity: Severity) -> Finding | None:
    """PA303: a running average, a weight or a counter whose changes are rounded away."""
    if entry.lost < _STATE_LIMIT:
        return None
    share = "all" if entry.lost >= 1 else f"{entry.lost:.0%}"
    message = (
        f"{described(entry)} is kept in {entry.dtype} from step to step, which absorbs its small changes: rounding "
        f"loses {share} of their energy, so it stagnates (it hardly moves)"
    )
    return _of_kept(entry, severity, message, lost=entry.lost)


def described(entry: Kept) -> str:
    """The description of a state: a buffer or optimizer state by its name, a module's weight, or another tensor."""
    if entry.buffer:
        return ".".join(part for part in (entry.fqn, entry.buffer) if part)
    return "a running value" if entry.fqn is None else f"a weight of {entry.fqn or 'the model itself'}"


@_described.register
def _decay(entry: VainDecay, severity: Severity) -> Finding:
    """PA303: a decay factor that rounds to one, which affects training once the additions become small."""
    message = (
        f"{described(entry)} is kept in {entry.dtype} and multiplied by {entry.factor:.6g} in every "
        "step, which changes nothing after rounding: it never decays"
    )
    return _of_kept(entry, "warning", message, factor=entry.factor)


def _of_kept(entry: Kept, severity: Severity, message: str, **evidence: float) -> Finding:
    fix = "keep moving averages, weights and accumulators in float32, and cast where they are used"
    facts: dict[str, Any] = {**evidence, **({"role": entry.buffer} if entry.buffer else {})}
    return finding("PA303", severity, message, fix, entry.fqn, None, entry.place, **facts)


@_described.register
def _gradients(entry: GradientSumLoss, severity: Severity) -> Finding | None:
    """PA304: gradients of several backward passes accumulate in a half `.grad`."""
    if entry.lost < _SUM_LIMIT:
        return None
    message = (
        f"{entry.fqn or 'the model'}: the gradients of several backward passes accumulate in "
        f"{entry.dtype}, which absorbs small ones: the sum is off by {entry.lost**0.5:.0%}"
    )
    return finding("PA304", severity, message, "accumulate gradients in float32", entry.fqn, lost=entry.lost)


@_described.register
def _rows(entry: RowSumLoss, severity: Severity) -> Finding | None:
    """PA305: the gradient of a row with many lookups is summed in half."""
    if entry.lost < _SUM_LIMIT:
        return None
    message = (
        f"rows are looked up in a {entry.dtype} table, so the gradients of repeated rows accumulate in "
        f"{entry.dtype}, which absorbs small ones: the sum is off by {entry.lost**0.5:.0%}"
    )
    fix = "look rows up in float32 and cast the result: in table.float() where the table itself is computed in half"
    return finding("PA305", severity, message, fix, entry.fqn or None, entry.op, entry.place, lost=entry.lost)


@_described.register
def _integers(entry: ChangedIntegers, severity: Severity) -> Finding:
    """PA306: integers (ids, positions, counts) that change in a low format."""
    message = (
        f"whole numbers up to {entry.amax:g} are stored in {entry.dtype}, which can't hold every integer above "
        f"{entry.limit:g}: {entry.changed} of them are rounded to others: ids alias, a count stands still"
    )
    fix = "keep these whole numbers in an integer or float32 tensor, if they are indices, positions or counts"
    return finding("PA306", severity, message, fix, location=entry.place, changed=entry.changed)


@_described.register
def _overflow(entry: Overflow, severity: Severity) -> Finding:
    """PA307: the first non-finite value that the script's own low precision produces. One of an evaluation at the end
    explains nothing of the training."""
    when = "after the last step" if entry.late else f"at step {entry.step}"
    message = (
        f"{entry.op} makes non-finite values in the script's own {entry.dtype} {when}, from "
        f"finite inputs up to {entry.amax:.3g}: it overflows, or divides by what was rounded to zero"
    )
    fix = f"keep {'what this operation changes in place' if entry.in_place else 'this operation'} in float32"
    if entry.op in CASTS:
        message = (
            f"values up to {entry.amax:.3g} are cast to {entry.dtype} here {when}, which holds none that large: they "
            "become infinite"
        )
        fix = "keep these values in float32, or cast smaller ones: a mask takes torch.finfo(x.dtype).min"
    severity = "warning" if entry.late else severity
    return finding("PA307", severity, message, fix, None, entry.op, entry.place, step=entry.step, dtype=entry.dtype)


@_described.register
def _steps(entry: NonFiniteStep, severity: Severity) -> Finding:
    """PA504: an optimizer step with non-finite gradients."""
    message = (
        f"at step {entry.step} the optimizer steps on non-finite gradients ({entry.parameters} parameters): "
        "nothing checks what overflows under the script's own precision and loss scale"
    )
    fix = "step with a GradScaler, scaler.step(optimizer), which skips such steps, or check the gradients first"
    return finding("PA504", "error", message, fix, entry.fqn or None, location=entry.place, step=entry.step)


@_described.register
def _weights(entry: NonFiniteWeight, severity: Severity) -> Finding:
    """PA504: the script itself writes non-finite values to a weight."""
    message = (
        f"at step {entry.step} the script itself writes non-finite values into weights ({entry.op}), computed "
        "from gradients that overflowed: a GradScaler skips an optimizer's steps, not what the script writes"
    )
    fix = "check that the gradients are finite before they are used, or begin with a lower loss scale"
    return finding("PA504", "error", message, fix, entry.fqn or None, entry.op, entry.place, step=entry.step)


@_described.register
def _runaway(entry: RunawayScale, severity: Severity) -> Finding:
    """PA505: a loss scale that the script raises without a limit, or begins with."""
    if entry.begins:
        message = (
            f"the script's own loss scale begins at {entry.scale:.3g}, far above what float16 holds: steps in float16 "
            "are lost until it has come down, or all of them where nothing lowers it"
        )
        return finding("PA505", severity, message, _BEGIN, location=entry.place, step=entry.step)
    message = (
        f"the script's own loss scale runs away: it passes {entry.scale:.3g} at step {entry.step}, without a "
        "ceiling, until the scaled loss itself is not finite"
    )
    return finding("PA505", "error", message, CAP, step=entry.step)
