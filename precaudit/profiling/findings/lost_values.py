"""Findings on values that a script's own low precision loses: what may explain that it trains unlike float32."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

from precaudit.execution.policy import category
from precaudit.finding import finding
from precaudit.formats import LOCAL_ERROR_LIMIT
from precaudit.model import Finding, Severity
from precaudit.ownprecision.operations import ANGLES
from precaudit.ownprecision.records import (
    BlurredInCast,
    Cancellation,
    CastLoss,
    LostGradient,
    NonFiniteGradient,
    NonFiniteLoss,
    OpLoss,
    Overflow,
    RoundedConstant,
    VanishedInCast,
)
from precaudit.planning.rules import OF_A_SUM
from precaudit.running.job import RunResult
from precaudit.tracing.records import ABSORBING
from precaudit.verification.statistics import diverged
from precaudit.words import listing, plural

_MOST_LOST = 0.1
"""Limits for a cast: the share of values that become zero, and the rounding error relative to the spread (rms)."""
_CASTS = {
    VanishedInCast: (
        "share",
        "{lost:.0%} of the values that are cast to {dtype} here are too small for it, and become zero",
        "keep these values in float32, or scale them before the cast",
    ),
    BlurredInCast: (
        "lost",
        "{dtype} is too coarse for the values that are cast to it here: rounding changes them by {lost:.0%} of their "
        "spread, so the differences between them are lost",
        "subtract a common offset before the cast, or keep the values in float32",
    ),
}
"""By kind: the name of the loss in evidence, the message, and the fix. What vanishes are small values, such as squared
gradients; what blurs, values close together, such as coordinates far from their origin."""
_MEANT = {
    0.0: "what it should protect is not, and what it weighs does not count",
    1.0: "what decays by such a factor never does, and what it bounds is not bounded",
}
_ANOTHER = "as a decay or a discount, for which the distance from one counts, that is another number"
_OF_WHAT = {
    **dict.fromkeys(ABSORBING, OF_A_SUM),
    **dict.fromkeys(ANGLES, "its result, because its angle is rounded"),
}


def of_nonfinite(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA307: the operation that makes the loss non-finite, if no operation in low precision did. Where a scaler skips
    all further steps, that loss belongs to none, and the run is short."""
    lost, made = diverged(reference.losses, run.losses), next(iter(run.own_precision.entries(NonFiniteLoss)), None)
    step = lost.step if lost else len(run.losses)
    if made is None or made.step != step or _overflowed(run, step):
        return []
    if step >= len(reference.losses) or not math.isfinite(reference.losses[step]):
        return []
    message = (
        f"{_of(made.fqn)}{made.op} makes non-finite values at step {made.step}, and the loss with them, but not in "
        "float32: the script's own low precision has made its input zero, one or too large before"
    )
    fix = "keep the input of this operation in float32, from where it is made"
    return [finding("PA307", "error", message, fix, made.fqn or None, made.op, made.place, step=made.step)]


def of_backward(run: RunResult) -> list[Finding]:
    """PA307: the operation whose backward makes the gradient of a finite loss nan or inf."""
    made = next(iter(run.own_precision.entries(NonFiniteGradient)), None)
    if made is None or _overflowed(run, made.step):
        return []
    message = (
        f"{_of(made.fqn)}the backward of {made.op} makes {'nan' if made.nan else 'inf'} at step {made.step}, "
        "where the loss and the gradient that it is given are finite: the script's own low precision has made its "
        "input zero or one, where its slope is infinite, or too large"
    )
    fix = "keep its input in float32, from where that is made, or add an eps to it that low precision can hold"
    return [finding("PA307", "error", message, fix, made.fqn or None, made.op, made.place, step=made.step)]


def _overflowed(run: RunResult, step: int) -> bool:
    """Whether an operation in low precision made a non-finite value by this step: later ones explain nothing of it."""
    return any(entry.step <= step for entry in run.own_precision.entries(Overflow))


def _of(fqn: str) -> str:
    """The beginning of a message on what happens in a module."""
    return f"{fqn}: " if fqn else ""


def of_outputs(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA307: non-finite outputs that no loss uses, such as those of a validation."""
    lost = {name: step for name, step in run.end_state.lost.items() if name not in reference.end_state.lost}
    if not lost:
        return []
    name, step = min(lost.items(), key=itemgetter(1))
    message = (
        f"{name}: outputs are nan or inf in the script's own low precision, first after {plural(step, 'step')}, and "
        "never in float32"
    )
    fix = "keep the operation that makes them in float32, also where the script only evaluates"
    return [finding("PA307", "error", message, fix, step=step)]


def of_kept(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA307: non-finite buffers and optimizer states that no loss shows, such as a running variance. A buffer that
    never changes may well be infinite: a mask."""
    known, ended = reference.end_state, run.end_state
    running = [name for name in ended.buffers if known.moved.get(name) != 0]
    kept = {*running, *ended.optimizer_state} - {*known.buffers, *known.optimizer_state}
    if not kept:
        return []
    message = (
        f"{listing(sorted(kept), 3)}: nan or inf at the end in the script's own low precision, and finite in float32; "
        "the loss of a training step doesn't show it, evaluation may"
    )
    fix = "keep running statistics and optimizer states in float32"
    place = next((cast.place for cast in run.own_precision.casts), None)
    return [finding("PA307", "error", message, fix, location=place, lost=tuple(sorted(kept)))]


def of_operations(run: RunResult) -> list[Finding]:
    """PA106: operations that lose their result in the script's own format: additions that lose the smaller addend,
    sines of rounded angles, and others outside of all modules."""
    lost = [entry for entry in run.own_precision.entries(OpLoss) if entry.lost >= LOCAL_ERROR_LIMIT]
    return [
        finding(
            "PA106",
            "error",
            f"{_of(entry.fqn)}{entry.op} in {entry.dtype}, which the script chose "
            f"itself, is off by {entry.lost:.0%} of {_OF_WHAT.get(entry.op, 'its result')}",
            "keep this operation and its inputs in float32",
            entry.fqn or None,
            entry.op,
            entry.place,
            lost=entry.lost,
        )
        for entry in lost
    ]


def of_cancellations(run: RunResult) -> list[Finding]:
    """PA106: differences of values in the script's own format that were rounded by about as much as they differ."""
    return [
        finding(
            "PA106",
            "error",
            f"{_of(entry.fqn)}{entry.op} in {entry.dtype}, which the script chose itself, takes the difference of "
            f"values that are much larger: their rounding is {entry.lost:.0%} of what is left, or of its spread",
            "keep in float32 what this operation is given, from where it is computed",
            entry.fqn or None,
            entry.op,
            entry.place,
            lost=entry.lost,
        )
        for entry in run.own_precision.entries(Cancellation)
        if entry.lost > _MOST_LOST
    ]


def products(run: RunResult) -> list[OpLoss]:
    """Matrix products in low precision that are part of no module, by line. Each loses little, but what is computed
    from them (the root of a preconditioner) may lose much."""
    low = (entry for entry in run.own_precision.entries(OpLoss) if category(entry.op) == "lower")
    return sorted(low, key=lambda entry: entry.place.line if entry.place else 0)


def lossiest_outside(run: RunResult, least: float) -> list[OpLoss]:
    """Operations in low precision that are part of no module and lose more than `least`, the worst first."""
    lost = [entry for entry in run.own_precision.entries(OpLoss) if not entry.fqn and entry.lost > least]
    return sorted(lost, key=lambda entry: -entry.lost)


def of_region(run: RunResult) -> list[Finding]:
    """PA511: products in an optimizer's step that run low because of autocast."""
    first = next((entry for entry in products(run) if entry.region_steps), None)
    if first is None:
        return []
    message = (
        f"{first.op} of an optimizer's step runs in {first.dtype}, because an autocast region is open around it: "
        "what is computed from it (a preconditioner, say) may be far less exact than this product is"
    )
    fix = "end the autocast region before the backward pass: it is for the forward pass and the loss alone"
    return [finding("PA511", "error", message, fix, None, first.op, first.place)]


def of_lost_gradients(run: RunResult) -> list[Finding]:
    """PA307: gradients that overflow, which the script then skips or replaces."""
    lost = next(iter(run.own_precision.entries(LostGradient)), None)
    if lost is None:
        return []
    dtype = "low precision" if lost.dtype == "float32" else lost.dtype
    scaled = f", of a loss multiplied by {lost.scale:.3g}" if lost.scale > 1 else ""
    message = (
        f"{lost.fqn or 'the model'}: gradients are not finite in the script's own {dtype} at step "
        f"{lost.step}{scaled}: the model learns nothing from them"
    )
    fix = "lower the loss scale, or let torch.amp.GradScaler find it"
    return [finding("PA307", "error", message, fix, lost.fqn or None, location=lost.place, step=lost.step)]


def of_casts(run: RunResult, kind: type[CastLoss]) -> list[Finding]:
    """PA309: casts that lose more than a tenth of their input."""
    measure, message, fix = _CASTS[kind]
    found = []
    for entry in run.own_precision.entries(kind):
        if entry.lost > _MOST_LOST:
            said = message.format(dtype=entry.dtype, lost=entry.lost)
            evidence: dict[str, Any] = {measure: entry.lost}
            found.append(finding("PA309", "error", said, fix, location=entry.place, **evidence))
    return found


def of_constants(run: RunResult, severity: Severity) -> list[Finding]:
    """PA104: numbers that the script itself makes low tensors of, and that become zero, one or another decay there."""
    return [
        finding(
            "PA104",
            severity,
            f"the script makes a {entry.dtype} tensor of {entry.value:.8g} here, which is {entry.becomes:.8g} in that "
            f"format: {_MEANT.get(entry.becomes, _ANOTHER)}",
            "keep this number a Python float, or in float32",
            location=entry.place,
            value=entry.value,
        )
        for entry in run.own_precision.entries(RoundedConstant)
    ]
