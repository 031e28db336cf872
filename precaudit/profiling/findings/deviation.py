"""Whether a script as written, in its own low precision, trains differently from float32, by one pair of runs."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np

from precaudit.model import Verification
from precaudit.ownprecision.records import LostGradient, NonFiniteGradient, NonFiniteLoss, Overflow
from precaudit.running.job import RunResult
from precaudit.verification.gates import allowed, unused_calls, usual_calls
from precaudit.verification.statistics import (
    MARGIN_CAP,
    NOISE_LIMIT,
    comparison_window,
    diverged,
    relative_differences,
)

_DEVIATION_MARGINS = 10.0
"""One pair has no spread, so that only a difference of this many margins counts as an error."""
_STANDARD_ERRORS = 4.0
_MOST_SKIPPED = 0.5
"""A script that skips more than this share of its steps is not training (an unlucky scaler skips its first dozen)."""
_UNLUCKY, _WASTED = 24, 0.3
"""A scaler skips at most this many steps until it finds its scale; misuse skips more, and at least this share."""


_JUDGED = (
    ": where it judges them by their gradients, those are still multiplied by the loss scale before "
    "scaler.unscale_(optimizer) is called"
)


def deviation_from_float32(reference: RunResult, run: RunResult, verification: Verification) -> str | None:
    """How the script as written deviates from float32, by more than chance; None if it doesn't."""
    if (lost := diverged(reference.losses, run.losses)) is not None:
        return lost.detail
    if run.status == "ended" and run.steps < (1 - _MOST_SKIPPED) * reference.steps:
        why = _skipping(reference, run) or "its scaler or the script itself skips steps, or it stops early"
        return f"it takes {run.steps} optimizer steps until it ends, and {reference.steps} or more in float32: {why}"
    if skipping := _skipping(reference, run):
        return skipping
    if _leaves_out(reference, run):
        unused = sum(_calls_unused(reference, run))
        return f"it skips {unused} batches in {run.steps} steps, but not in float32"
    steps = min(len(run.losses), len(reference.losses))
    if not steps:
        return None
    window = comparison_window(steps, steps)
    difference = float(relative_differences([reference.losses], [run.losses], window)[0])
    limit = max(_limit(verification), _by_chance(reference.losses[window]) if _missing(reference, run) > 0 else 0.0)
    return f"its loss ends {difference:+.1%} from float32's" if abs(difference) > limit else None


def _by_chance(losses: tuple[float, ...]) -> float:
    """How far the mean loss may differ by chance from that of other batches, which follow after a skipped step."""
    mean = float(np.mean(losses))
    return _STANDARD_ERRORS * float(np.std(losses)) * (2 / len(losses)) ** 0.5 / abs(mean) if mean else 0.0


def _missing(reference: RunResult, run: RunResult) -> int:
    """How many optimizer steps are missing for the number of backward passes."""
    if not (reference.steps and reference.backward_calls):
        return 0
    return round(run.backward_calls * reference.steps / reference.backward_calls) - run.steps


def _skipping(reference: RunResult, run: RunResult) -> str:
    """Who skips steps of a script with a scaler; "" where only a few are skipped. A script that looks at gradients
    before its scaler does sees them multiplied by the loss scale."""
    skipped = _skipped(reference, run) if reference.own_precision.grad_scaler else 0
    of = f"{skipped} of {skipped + run.steps} optimizer steps"
    by_scaler = run.own_precision.scaler_steps - run.steps
    if not skipped or by_scaler < 0 or by_scaler > skipped / 2:
        return f"its scaler skips {of}" if skipped else ""
    left_out = f"the script itself leaves out {of}, before it calls scaler.step"
    return left_out if _has_nonfinite(run) else f"{left_out}{_JUDGED}"


def _has_nonfinite(run: RunResult) -> bool:
    return any(isinstance(e, (NonFiniteLoss, NonFiniteGradient, LostGradient, Overflow)) for e in run.own_precision.low)


def _skipped(reference: RunResult, run: RunResult) -> int:
    """How many steps were skipped; 0 if only a few."""
    skipped = _missing(reference, run)
    return skipped if skipped > max(_UNLUCKY, _WASTED * (skipped + run.steps)) else 0


def ends_early(reference: RunResult, run: RunResult) -> bool:
    """Whether the script ended by itself with more steps missing than its scaler or skipped batches explain."""
    missing = reference.steps - run.steps - sum(_left_out(reference, run))
    return run.status == "ended" and missing > _few(reference, reference.steps)


def _leaves_out(reference: RunResult, run: RunResult) -> bool:
    """Whether more than a few batches led to no step, as where the script checks its loss. A scaler by hand, too, finds
    its scale before the first step."""
    first, *later = _left_out(reference, run) or [0]
    unused = max(0, first - _UNLUCKY) + sum(later)
    return unused > _few(reference, unused + run.steps)


def _left_out(reference: RunResult, run: RunResult) -> list[int]:
    """For each step, what was skipped before it: whole steps (with all their model calls) and single batches."""
    whole = max(reference.calls, default=0) or 1
    return [count // whole + count % whole for count in _calls_unused(reference, run)]


def _calls_unused(reference: RunResult, run: RunResult) -> list[int]:
    return unused_calls(run.calls, usual_calls([reference]))


def _few(reference: RunResult, steps: int) -> float:
    """How many steps may be missing: where there is a scaler, as many as it skips until it has found its scale."""
    return max(_UNLUCKY, _WASTED * steps) if reference.own_precision.grad_scaler else allowed(steps)


def _limit(verification: Verification) -> float:
    """The limit for the loss difference: many margins or, if larger, the spread of single pairs in verification. Where
    there is one pair alone, and it decides nothing, its difference stands for chance."""
    mean, lower, upper = astuple(verification.difference)
    if lower is not None and upper is not None:
        spread = (upper - lower) * len(verification.seeds) ** 0.5
    else:
        spread = _STANDARD_ERRORS * abs(mean or 0.0) if verification.verdict == "inconclusive" else 0.0
    margin = min(verification.margin or MARGIN_CAP, NOISE_LIMIT)
    return max(_DEVIATION_MARGINS * margin, spread)
