"""Why float32 itself is not finite: PA603, and the one run that looks for the cause."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeGuard

from precaudit.finding import finding
from precaudit.model import Finding, Verification
from precaudit.ownprecision.records import Entry, NonFiniteData, NonFiniteGradient, NonFiniteLoss, RunawayScale
from precaudit.profiling.audit import Audit, Runner
from precaudit.profiling.findings.entries import CAP
from precaudit.running.job import WATCH, RunSpec
from precaudit.words import plural

_GREW = 1e12
"""Inputs this large are far beyond what any layer is meant to hold: the training diverged."""

Origin = NonFiniteLoss | NonFiniteData | NonFiniteGradient


def origin_of_nonfinite(audit: Audit, verification: Verification, runner: Runner) -> Origin | None:
    """Repeats the first float32 run that lost its loss, up to there, and examines every operation, also those outside
    of all modules. None where no run did, its cause is known, or nothing was found."""
    lost = _first_lost(audit, verification)
    if lost is None or not audit.complete or _by_scale(audit):
        return None
    seed, step = lost
    spec = RunSpec(replace(audit.job, steps=step + 1), WATCH, seed, "own-casts", execution=audit.execution)
    run = runner(replace(spec, neutralize=audit.neutralize, patience=audit.reference.patience))
    causes = [each for each in run.own_precision.low if _explains(each, step)]
    return min(causes, key=lambda each: each.step, default=None)


def _first_lost(audit: Audit, verification: Verification) -> tuple[int, int] | None:
    """Seed and step of the first non-finite loss in float32, with and without verification."""
    runs = [(audit.reference.seed, audit.reference.losses)]
    runs += [(trial.seed, trial.losses) for trial in verification.trials if trial.is_reference]
    lost = ((seed, step) for seed, losses in runs for step, loss in enumerate(losses) if not math.isfinite(loss))
    return next(lost, None)


def _by_scale(audit: Audit) -> bool:
    """Whether the script's own loss scale runs away: kept by hand, it does so in float32 too."""
    return audit.as_written is not None and bool(audit.as_written.own_precision.entries(RunawayScale))


def _explains(entry: Entry, step: int) -> TypeGuard[Origin]:
    """Whether it made the loss of this step non-finite: itself, or the gradient that the weights took over before."""
    if isinstance(entry, NonFiniteGradient):
        return entry.step == step - 1
    return isinstance(entry, NonFiniteLoss | NonFiniteData) and entry.step == step


def of_float32(audit: Audit, verification: Verification, origin: Origin | None = None) -> Iterator[Finding]:
    """PA603: the loss is not finite in float32 itself."""
    lost = _first_lost(audit, verification)
    if lost is None:
        return
    what = f"the loss is not finite in float32 itself, from step {lost[1]} on (seed {lost[0]})"
    if _by_scale(audit):
        message = f"{what}: the script's own loss scale runs away there too"
        yield finding("PA603", "error", message, CAP, step=lost[1])
        return
    why, fix = _told(origin)
    fqn = getattr(origin, "fqn", "") or None
    op, place = (origin.op, origin.place) if origin else (None, None)
    yield finding("PA603", "error", f"{what}: {why}", fix, fqn, op, place, step=lost[1])


def _told(origin: Origin | None) -> tuple[str, str]:
    """What made the loss non-finite, and the remedy."""
    if origin is None:
        return "no number format is to blame", "repair the training in float32 first"
    kind = "nan" if origin.nan else "inf"
    if isinstance(origin, NonFiniteData):
        values = plural(origin.numel, "value")
        return (
            f"{kind} came with the data, as {origin.bad:,} of the {values} that {origin.op} reads",
            "leave such samples out, or mend them, before the model sees them: torch.isfinite(batch).all() finds them",
        )
    if isinstance(origin, NonFiniteGradient):
        return (
            f"the backward of {origin.op} makes {kind} at step {origin.step}, of a finite loss, and the weights take "
            "it over",
            "keep its input away from where its slope is infinite (the root of zero, a norm of zeros): add an eps "
            "inside of it, or mask such values before it and not after it",
        )
    made = f"{origin.op} makes {kind}"
    if origin.amax is None:
        return (
            f"{made} of infinite values",
            "see where these come from: a row that is masked everywhere has no softmax, and inf - inf no value",
        )
    if origin.amax >= _GREW:
        return (
            f"{made}, as the training diverges: its inputs have grown to {origin.amax:.2g}",
            "lower the learning rate, warm it up, or clip the gradients",
        )
    return (
        f"{made} of finite values, none larger than {origin.amax:.3g}",
        f"keep the inputs of {origin.op} where it is defined: clamp them, or add an eps",
    )
