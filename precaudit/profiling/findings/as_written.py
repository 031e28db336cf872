"""Findings on a script's own low precision: whether it trains like float32 as written, and what explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from precaudit.finding import USE_THE_PLAN, finding
from precaudit.model import SEVERITIES, Finding, Location, Severity, Verification
from precaudit.ownprecision.changes import depends_on_scale
from precaudit.ownprecision.records import (
    BlurredInCast,
    Cast,
    Misuse,
    MisuseKind,
    StaleCast,
    StateLoss,
    TrainedLow,
    VanishedInCast,
)
from precaudit.profiling.audit import Audit
from precaudit.profiling.findings.deviation import deviation_from_float32, ends_early
from precaudit.profiling.findings.entries import causes_in, described, kept_in
from precaudit.profiling.findings.half_weights import WITHOUT_MEMORY
from precaudit.profiling.findings.lost_values import (
    lossiest_outside,
    of_backward,
    of_cancellations,
    of_casts,
    of_constants,
    of_kept,
    of_lost_gradients,
    of_nonfinite,
    of_operations,
    of_outputs,
    of_region,
    products,
)
from precaudit.profiling.findings.scaled import CERTAIN, CHANGES, HOOKS, LIKELY, of_scaled
from precaudit.running.job import RunResult
from precaudit.verification.statistics import Divergence, diverged
from precaudit.words import listing, plural

_OF_TORCH = {
    "without overflow": "write a smaller constant, or keep what it is written to in float32: a mask takes "
    "torch.finfo(x.dtype).min",
    **dict.fromkeys(
        ("same dtype", "same scalar type", "should be the same", "dtypes match", "match weight dtype"),
        "cast what the operation is given to one dtype, or run it inside the autocast region, which does so",
    ),
}
"""torch's messages on any device for a constant that doesn't fit a dtype and for dtypes that differ, and the fixes."""
_OF_SCALERS = {
    "since the last update()": "call scaler.update() once, at the end of every step, and before it "
    "scaler.unscale_(optimizer) and scaler.step(optimizer) once each",
    "_scale is None": "use one GradScaler for all losses: the one that scales the loss is the one to step with",
    "unscale FP16 gradients": "keep the weights in float32: autocast casts them where they are used",
    "prior to update": "call scaler.update() once a step, after scaler.step(optimizer)",
    "No inf checks": "step an optimizer only after the backward pass of a loss that this scaler has scaled",
}
"""torch's messages for misuse of a scaler, and the fixes."""
_OF_GRADIENTS = ("PA304", "PA305")
"""Sums of gradients that lose a little: an operation that loses much explains more."""
_MARKED = 0.01
"""An operation that loses more than this loses several times what every one in bfloat16 does."""
_LEAST_TOLD = 0.001
_WITHOUT_CASTS = f"{USE_THE_PLAN}, and keep in float32 what is cast there by hand"
"""The plan was verified without the script's casts, which stay where they are when its lines are pasted."""
_IN_FLOAT32 = "train in float32 instead of the script's own low precision, until a plan is verified"


def of_as_written(audit: Audit, verification: Verification) -> list[Finding]:
    """PA501: the script's own low precision doesn't train like float32, or not at all; PA502, PA506, PA507: it clips
    scaled gradients, steps on them, or uses them in a loss; PA508: it unscales gradients that were never scaled; PA509:
    its autocast uses stale weights; and the causes."""
    reference, run = audit.reference, audit.as_written
    own = reference.own_precision
    found = [*_of_stale_casts(own.stale_casts), *of_scaled(own.misuses, CERTAIN)]
    if run is None:
        return found
    misuses = _with_the_change(own.misuses, run)
    depends = depends_on_scale(own.changed_by, run.own_precision.changed_by)
    if depends and "clips_scaled" not in misuses:
        found += of_scaled(misuses, CHANGES)
    if depends_on_scale([own.hooked_by], [run.own_precision.hooked_by]):
        found += of_scaled(misuses, HOOKS)
    fix = _IN_FLOAT32 if verification.verdict in ("fail", "inconclusive") else USE_THE_PLAN
    if not run.finished:
        return [*found, *_of_unfinished(reference, run, fix, bool(found))]
    detail = deviation_from_float32(reference, run, verification)
    if detail is None:
        causes = _beside(reference, run, fix)
        return [*found, *([] if causes else _of_kept_low(run, own.autocast_at)), *causes]
    likely = of_scaled(misuses, {**LIKELY, **CHANGES} if depends is None else LIKELY)[:1]
    causes = _explaining(reference, run, likely, bool(found))
    if not (found or causes):
        known = _outside(run) or _likely(audit)
        detail += known or _unexplained(run)
        fix = _WITHOUT_CASTS if fix == USE_THE_PLAN and run.own_precision.casts and not known else fix
    return [*found, _of_difference(run, detail, own.autocast_at, fix), *causes]


def _of_unfinished(reference: RunResult, run: RunResult, fix: str, explained: bool) -> list[Finding]:
    """PA501 where the script stops as written, and the causes that it leaves."""
    lost = diverged(reference.losses, run.losses)
    stops = [] if run.status == "interrupted" else [_of_stop(run, lost, fix)]  # by the user, not by itself
    backward = of_backward(run) if lost else []
    causes = _beside_backward(backward, reference, run, "error" if lost and not explained else "warning")
    return [*stops, *of_nonfinite(reference, run), *causes]


def _explaining(reference: RunResult, run: RunResult, likely: list[Finding], explained: bool) -> list[Finding]:
    """The causes of a deviation, and what loses much beside them where they lose little."""
    causes = _causes(reference, run, "warning" if explained else "error") or _possible_causes(run, likely)
    if all(each.rule in _OF_GRADIENTS for each in causes):
        causes += [each for each in of_operations(run) if each not in causes]
    return causes


def _causes(reference: RunResult, run: RunResult, severity: Severity) -> list[Finding]:
    """What explains a deviation whatever its size."""
    known = [*_of_penalty(reference, run), *of_nonfinite(reference, run)]
    return [*known, *_beside_backward(of_backward(run), reference, run, severity)]


def _beside_backward(
    backward: list[Finding], reference: RunResult, run: RunResult, severity: Severity
) -> list[Finding]:
    """The entries' findings behind those on a backward that makes nan. Then a scaler, which PA504 advises, would skip
    every step."""
    causes = causes_in(reference, run, severity)
    return [*backward, *(each for each in causes if not (backward and each.rule == "PA504"))]


def _possible_causes(run: RunResult, likely: list[Finding]) -> list[Finding]:
    """What may explain a deviation where nothing else does, by the most telling kind; `likely` are misuses of a
    scaler."""
    lost = of_lost_gradients(run) or of_casts(run, VanishedInCast) or of_operations(run) or of_region(run)
    rounded = of_casts(run, BlurredInCast) or of_cancellations(run)
    return lost or likely or rounded or of_constants(run, "error")


def _beside(reference: RunResult, run: RunResult, fix: str) -> list[Finding]:
    """What goes wrong although the losses are float32's."""
    found = [*_of_penalty(reference, run), *of_nonfinite(reference, run), *causes_in(reference, run, "warning")]
    if not any(each.rule == "PA307" for each in found):
        found += of_outputs(reference, run)
    found += of_constants(run, "note")
    return [*found, *of_kept(reference, run), *([_of_end(reference, run, fix)] if ends_early(reference, run) else [])]


def _of_stale_casts(stale: StaleCast | None) -> list[Finding]:
    if stale is None:
        return []
    where, age = stale.fqn or "the model", plural(stale.steps, "step")
    message = (
        f"{where}: {stale.optimizer} steps inside an autocast region that stays open, in which torch keeps using "
        f"the low-precision copies of the weights that it made up to {age} ago"
    )
    fix = "open autocast anew in every step, around the forward pass and the loss alone"
    severity: Severity = "error" if stale.steps > 1 else "warning"
    return [finding("PA509", severity, message, fix, stale.fqn or None, location=stale.place, steps=stale.steps)]


def _with_the_change(misuses: Mapping[MisuseKind, Misuse], run: RunResult) -> Mapping[MisuseKind, Misuse]:
    """The line that changes the gradients, in the place of the one that unscales them later."""
    place = run.own_precision.changes_gradients
    return {
        kind: replace(misuse, place=place) if place and kind in CHANGES else misuse for kind, misuse in misuses.items()
    }


def _of_penalty(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA507: a loss computed from scaled gradients. A missing division alone is no proof: the first loss, on the same
    weights and data, must differ too."""
    place = run.own_precision.penalizes_scaled
    if place is None or not run.losses or not reference.losses:
        return []
    first, exact = run.losses[0], reference.losses[0]
    if abs(first - exact) <= abs(exact):
        return []
    message = (
        "gradients of a scaled loss become part of another loss (by a gradient penalty or an inner step) while they "
        f"are still multiplied by the loss scale: the first loss is {first:.4g}, and {exact:.4g} without a scaler"
    )
    fix = "divide these gradients by scaler.get_scale() before anything is computed from them"
    return [finding("PA507", "error", message, fix, location=place)]


def _of_stop(run: RunResult, lost: Divergence | None, fix: str) -> Finding:
    """The script fails as written. Often this machine lacks a kernel (a layer's in float16), which says little about
    the script, unlike a refusal of torch's GradScaler or of a constant too large for a dtype, or a loss that was lost
    before: what came of it was refused."""
    why = f": {run.error.short}" if run.error else ""
    place = run.error.location if run.error else None
    if lost is not None:
        message = (
            f"as written, in its own low precision, the script doesn't train like float32: {lost.detail}, and the "
            f"script stops at step {run.steps}{why}"
        )
        return finding("PA501", "error", message, fix, location=place)
    of_scaler = run.error is not None and run.error.is_scalers_refusal
    remedy = next((fix for said, fix in (_OF_SCALERS if of_scaler else _OF_TORCH).items() if said in why), None)
    if of_scaler or remedy:
        refuses = "torch's scaler" if of_scaler else "torch"
        message = f"as written, the script stops at step {run.steps}, on any machine: {refuses} refuses it{why}"
        fix = remedy or fix
        return finding("PA501", "error", message, fix, location=place)
    message = (
        f"as written, in its own low precision, the script stops at step {run.steps} on this machine{why}; so whether "
        "it trains like float32 is not known"
    )
    return finding("PA501", "warning", message, fix, location=place)


def _of_end(reference: RunResult, run: RunResult, fix: str) -> Finding:
    """The script ends early: it may check its loss and exit before the backward pass, so that no non-finite loss is
    recorded."""
    message = (
        f"as written, in its own low precision, the script ends by itself at step {run.steps}, in float32 not before "
        f"{reference.steps}: the steps after that could not be compared"
    )
    return finding("PA501", "warning", message, f"see why it ended; {fix}")


def _of_difference(run: RunResult, detail: str, autocast: Location | None, fix: str) -> Finding:
    what, where, listed = _chosen(run, autocast)
    message = f"as written, in its own {what}, the script doesn't train like float32: {detail}"
    return finding("PA501", "error", message, fix, location=where, casts=listed)


def _of_kept_low(run: RunResult, autocast: Location | None) -> list[Finding]:
    """PA503, where the losses agree and nothing says more: low-precision tensors that change between steps."""
    if not run.own_precision.casts or not _keeps_low(run):
        return []
    what, where, listed = _chosen(run, autocast)
    kept = kept_in(run)
    names = listing(dict.fromkeys(map(described, kept)), 3)
    message = (
        f"the script casts to {what} by itself; what it keeps there ({names or 'weights, averages, counters'}) does "
        "not change when something too small is added to it"
    )
    if kept:
        lost = f"up to {kept[0].lost:.1%}" if kept[0].lost >= _LEAST_TOLD else f"less than {_LEAST_TOLD:.1%}"
        message += f"; so far {lost} of the energy of its changes was lost, which did no harm"
    fix = "keep weights, moving averages and accumulators in float32"
    if run.own_precision.entries(TrainedLow) and all(cast.dtype == "bfloat16" for cast in run.own_precision.casts):
        fix += WITHOUT_MEMORY
    place = next((entry.place for entry in kept if entry.place), where)
    return [finding("PA503", "note", message, fix, location=place, casts=listed)]


def _chosen(run: RunResult, autocast: Location | None) -> tuple[str, Location | None, list[str]]:
    """The low precision that a script chose by casts or by autocast: its formats, where it begins, and each cast."""
    casts = run.own_precision.casts
    what = " and ".join(dict.fromkeys(cast.dtype for cast in casts)) or "low precision"
    return what, casts[0].place if casts else autocast, [_cast(cast) for cast in casts]


def _cast(cast: Cast) -> str:
    return f"{cast.place} {cast.dtype}" + (f" (in {cast.through})" if cast.through else "")


def _outside(run: RunResult) -> str:
    """Low-precision products outside of all modules, such as an optimizer's, which the script may not have meant
    autocast to affect: each loses little, but what is computed from them may lose much."""
    first = next(iter(products(run)), None)
    if first is None:
        return ""
    what = f"{first.op} at {first.place}"
    return f"; matrix products outside of all modules run in {first.dtype} too, the first of them {what}"


def _likely(audit: Audit) -> str:
    """The most severe ban for the format of the script's own autocast: an eps that becomes zero before a logarithm,
    say."""
    own = [ban for ban in audit.bans if ban.format == audit.reference.own_precision.autocast]
    worst = min(own, key=lambda ban: SEVERITIES.index(ban.severity), default=None)
    if worst is None:
        return ""
    at = f", at {worst.location}" if worst.location else ""
    return f"; the likeliest cause is in {worst.fqn or 'the model itself'}: {worst.why}{at}"


def _unexplained(run: RunResult) -> str:
    """Where to look if nothing else is known: the script's casts, as many a loss shows only in what is computed from a
    cast value (the phase of a rounded frequency), and what it computes in half outside of all modules, as where a loss
    is taken of an autocast region's output. There every operation loses a little, but a difference of their results may
    be lost altogether."""
    cast = list(dict.fromkeys(str(cast.place) for cast in run.own_precision.casts))
    lossy = lossiest_outside(run, least=_MARKED if cast else 0.0)
    outside = list(dict.fromkeys(f"{entry.op} at {entry.place}" for entry in lossy))
    places = [f"what is cast at {listing(cast, 3)}"] if cast else []
    if outside:
        dtypes = listing(dict.fromkeys(entry.dtype for entry in lossy))
        places.append(f"what is computed in {dtypes} outside of all modules: {listing(outside, 3)}")
    return f"; no single operation explains it: look at {', and at '.join(places)}" if places else ""


def _keeps_low(run: RunResult) -> bool:
    """Whether any low-precision tensor changes between steps, unlike frozen weights and copies of float32 master
    weights."""
    return bool(run.own_precision.entries(StateLoss) or run.own_precision.entries(TrainedLow))
