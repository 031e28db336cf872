"""Findings on a script's own low precision: whether it trains like float32 as written, and where values are lost."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from precaudit.execution.policy import category
from precaudit.finding import SEVERITIES, USE_THE_PLAN, finding, place_of
from precaudit.formats import LOCAL_ERROR_LIMIT
from precaudit.model import Finding, Location, Severity, Verification
from precaudit.ownprecision.changes import IN_HOOKS, depends_on_scale
from precaudit.ownprecision.operations import ANGLES
from precaudit.planning.rules import OF_A_SUM
from precaudit.profiling.audit import Audit
from precaudit.profiling.deviation import deviation_from_float32, ends_early
from precaudit.profiling.entries import Seen, casts_in, causes_in, seen_in
from precaudit.profiling.scaled import CERTAIN, CHANGES, HOOKS, LIKELY, of_scaled
from precaudit.running.job import RunResult
from precaudit.tracing.records import ABSORBING
from precaudit.verification.statistics import diverged
from precaudit.words import listing, plural

_MOST_LOST = 0.1
"""Limits for a cast: the share of values that become zero, and the rounding error relative to the spread (rms)."""
_CASTS = {
    "vanished": (
        "share",
        "{share:.0%} of the values that are cast to float16 here are too small for it, and become zero",
        "keep these values in float32, or scale them before the cast",
    ),
    "blurred": (
        "lost",
        "{dtype} is too coarse for the values that are cast to it here: rounding changes them by {lost:.0%} of their "
        "spread, so the differences between them are lost",
        "subtract a common offset before the cast, or keep the values in float32",
    ),
}
"""By kind: the measure of the loss, the message, and the fix. `vanished` concerns small values, such as squared
gradients; `blurred`, values close together, such as coordinates far from their origin."""
_OF_WHAT = {
    **dict.fromkeys(ABSORBING, OF_A_SUM),
    **dict.fromkeys(ANGLES, "its result, because its angle is rounded"),
}
_REFUSALS = {
    "since the last update()": "call scaler.update() once, at the end of every step, and before it "
    "scaler.unscale_(optimizer) and scaler.step(optimizer) once each",
    "_scale is None": "use one GradScaler for all losses: the one that scales the loss is the one to step with",
    "unscale FP16 gradients": "keep the weights in float32: autocast casts them where they are used",
    "No inf checks": "step an optimizer only after the backward pass of a loss that this scaler has scaled",
}
"""torch's messages for misuse of a scaler, and the fixes."""
_IN_FLOAT32 = "train in float32 instead of the script's own low precision, until a plan is verified"


def of_as_written(audit: Audit, verification: Verification) -> list[Finding]:
    """PA501: the script's own low precision doesn't train like float32, or not at all; PA502, PA506, PA507: it clips
    scaled gradients, steps on them, or uses them in a loss; PA508: it unscales gradients that were never scaled; PA509:
    its autocast uses stale weights; and the causes."""
    found = [*_of_stale_casts(audit.reference.baseline), *of_scaled(audit.reference.baseline, CERTAIN)]
    run = audit.as_written
    if run is None:
        return found
    fix = _IN_FLOAT32 if verification.verdict in ("fail", "inconclusive") else USE_THE_PLAN
    depends = depends_on_scale(audit.reference.baseline, run.baseline)
    scaled = _with_the_change(audit.reference.baseline, run)
    if depends and "clips_scaled" not in scaled:
        found += of_scaled(scaled, CHANGES)
    if depends_on_scale(audit.reference.baseline, run.baseline, IN_HOOKS):
        found += of_scaled(audit.reference.baseline, HOOKS)
    if not run.finished:
        stops = [] if run.status == "interrupted" else [_of_stop(run, fix)]  # by the user, not by itself
        return [*found, *stops, *_of_nonfinite(audit.reference, run), *causes_in(run, "warning")]
    detail = deviation_from_float32(audit.reference, run, verification)
    causes = [
        *_of_penalty(audit.reference, run),
        *_of_nonfinite(audit.reference, run),
        *causes_in(run, "error" if detail and not found else "warning"),
    ]
    if detail and not causes:
        causes = _of_lost_gradients(run) or _of_casts(run, "vanished") or _of_operations(run)
        causes = causes or _of_region(run)
        likely = {**LIKELY, **CHANGES} if depends is None else LIKELY
        causes = causes or of_scaled(scaled, likely)[:1] or _of_casts(run, "blurred")
    if detail and not (found or causes):
        detail += _outside(run) or _likely(audit)
    if not detail and not any(cause.rule == "PA307" for cause in causes):
        causes += _of_outputs(audit.reference, run)
    if not detail:
        causes += _of_kept(audit.reference, run)
    if not detail and ends_early(audit.reference, run):
        causes.append(_of_end(audit.reference, run, fix))
    autocast = audit.reference.baseline.get("autocast_at")
    return [*found, *_of_difference(run, detail, bool(causes), autocast, fix), *causes]


def _of_stale_casts(baseline: Seen) -> list[Finding]:
    stale = baseline.get("stale_casts")
    if not isinstance(stale, dict):
        return []
    where, age = stale["fqn"] or "the model", plural(stale["steps"], "step")
    message = (
        f"{where}: {stale['optimizer']} steps inside an autocast region that stays open, in which torch keeps using "
        f"the low-precision copies of the weights that it made up to {age} ago"
    )
    fix = "open autocast anew in every step, around the forward pass and the loss alone"
    severity: Severity = "error" if stale["steps"] > 1 else "warning"
    return [finding("PA509", severity, message, fix, stale["fqn"] or None, None, place_of(stale), steps=stale["steps"])]


def _with_the_change(baseline: Seen, run: RunResult) -> Seen:
    """The line that changes the gradients, in the place of the one that unscales them later."""
    place = run.baseline.get("changes_gradients")
    seen = (
        {kind: {**baseline[kind], **place} for kind in CHANGES if kind in baseline} if isinstance(place, dict) else {}
    )
    return {**baseline, **seen}


def _of_penalty(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA507: a loss computed from scaled gradients. A missing division alone is no proof: the first loss, on the same
    weights and data, must differ too."""
    place = run.baseline.get("penalizes_scaled")
    if not isinstance(place, dict) or not run.losses or not reference.losses:
        return []
    first, exact = run.losses[0], reference.losses[0]
    if abs(first - exact) <= abs(exact):
        return []
    message = (
        "gradients of a scaled loss become part of another loss (by a gradient penalty or an inner step) while they "
        f"are still multiplied by the loss scale: the first loss is {first:.4g}, and {exact:.4g} without a scaler"
    )
    fix = "divide these gradients by scaler.get_scale() before anything is computed from them"
    return [finding("PA507", "error", message, fix, location=place_of(place))]


def _of_nonfinite(reference: RunResult, run: RunResult) -> list[Finding]:
    """PA307: the operation that makes the loss non-finite, if no operation in low precision did. Where a scaler skips
    all further steps, that loss belongs to none, and the run is short."""
    lost, seen = diverged(reference.losses, run.losses), {entry["kind"]: entry for entry in seen_in(run)}
    step = lost.step if lost else len(run.losses)
    made = seen.get("nonfinite")
    if made is None or made["step"] != step or step >= len(reference.losses) or "overflow" in seen:
        return []
    message = (
        f"{made['op']} makes non-finite values at step {made['step']}, and the loss with them, but not in float32: the "
        "script's own low precision has made its input zero, one or too large before"
    )
    fix = "keep the input of this operation in float32, from where it is made"
    return [finding("PA307", "error", message, fix, None, made["op"], place_of(made), step=made["step"])]


def _of_outputs(reference: RunResult, run: RunResult) -> list[Finding]:
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


def _of_kept(reference: RunResult, run: RunResult) -> list[Finding]:
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
    place = next(map(place_of, casts_in(run.baseline)), None)
    return [finding("PA307", "error", message, fix, location=place, lost=tuple(sorted(kept)))]


def _of_operations(run: RunResult) -> list[Finding]:
    """PA106: operations that lose their result in the script's own format: additions that lose the smaller addend,
    sines of rounded angles, and others outside of all modules."""
    lost = [entry for entry in seen_in(run) if entry["kind"] == "absorbed" and entry["lost"] >= LOCAL_ERROR_LIMIT]
    return [
        finding(
            "PA106",
            "error",
            f"{entry['fqn'] + ': ' if entry['fqn'] else ''}{entry['op']} in {entry['dtype']}, which the script chose "
            f"itself, is off by {entry['lost']:.0%} of {_OF_WHAT.get(entry['op'], 'its result')}",
            "keep this operation and its inputs in float32",
            entry["fqn"] or None,
            entry["op"],
            place_of(entry),
            lost=entry["lost"],
        )
        for entry in lost
    ]


def _of_region(run: RunResult) -> list[Finding]:
    """PA511: products in an optimizer's step that run low because of autocast. Each loses little, but what is computed
    from them (the root of a preconditioner) may lose much."""
    products = [e for e in seen_in(run) if e.get("region_steps") and category(e["op"]) == "lower"]
    first = min(products, key=lambda entry: entry["line"], default=None)
    if first is None:
        return []
    message = (
        f"{first['op']} of an optimizer's step runs in {first['dtype']}, because an autocast region is open around it: "
        "what is computed from it (a preconditioner, say) may be far less exact than this product is"
    )
    fix = "end the autocast region before the backward pass: it is for the forward pass and the loss alone"
    return [finding("PA511", "error", message, fix, None, first["op"], place_of(first))]


def _of_lost_gradients(run: RunResult) -> list[Finding]:
    """PA307: gradients that overflow, which the script then skips or replaces."""
    lost = next((entry for entry in seen_in(run) if entry["kind"] == "lost"), None)
    if lost is None:
        return []
    scaled = f", of a loss multiplied by {lost['scale']:.3g}" if lost["scale"] > 1 else ""
    message = (
        f"{lost['fqn'] or 'the model'}: gradients are not finite in the script's own {lost['dtype']} at step "
        f"{lost['step']}{scaled}: the model learns nothing from them"
    )
    fix = "lower the loss scale, or let torch.amp.GradScaler find it"
    return [finding("PA307", "error", message, fix, lost["fqn"] or None, None, place_of(lost), step=lost["step"])]


def _of_casts(run: RunResult, kind: str) -> list[Finding]:
    """PA309: casts that lose more than a tenth of their input."""
    measure, message, fix = _CASTS[kind]
    lost = [entry for entry in seen_in(run) if entry["kind"] == kind and entry[measure] > _MOST_LOST]
    return [
        finding("PA309", "error", message.format(**entry), fix, location=place_of(entry), **{measure: entry[measure]})
        for entry in lost
    ]


def _of_stop(run: RunResult, fix: str) -> Finding:
    """The script fails as written. Often this machine lacks a kernel (a layer's in float16), which says little about
    the script, unlike a refusal of torch's GradScaler."""
    why = f": {run.error.short}" if run.error else ""
    if run.error is not None and run.error.is_scalers_refusal:
        message = f"as written, the script stops at step {run.steps}, on any machine: torch's scaler refuses it{why}"
        fix = next((remedy for said, remedy in _REFUSALS.items() if said in why), fix)
        return finding("PA501", "error", message, fix, location=run.error.location)
    message = (
        f"as written, in its own low precision, the script stops at step {run.steps} on this machine{why}; so whether "
        "it trains like float32 is not known"
    )
    place = run.error.location if run.error else None
    return finding("PA501", "warning", message, fix, location=place)


def _of_end(reference: RunResult, run: RunResult, fix: str) -> Finding:
    """The script ends early: it may check its loss and exit before the backward pass, so that no non-finite loss is
    recorded."""
    message = (
        f"as written, in its own low precision, the script ends by itself at step {run.steps}, in float32 not before "
        f"{reference.steps}: the steps after that could not be compared"
    )
    return finding("PA501", "warning", message, f"see why it ended; {fix}")


def _of_difference(run: RunResult, detail: str | None, explained: bool, autocast: Any, fix: str) -> list[Finding]:
    casts = casts_in(run.baseline)
    places = [(Location(c["path"], c["line"]), c["dtype"]) for c in casts]
    where = places[0][0] if places else place_of(autocast)
    what = " and ".join(dict.fromkeys(dtype for _, dtype in places)) or "low precision"
    listed = [_cast(cast) for cast in casts]
    if detail is not None:
        return [
            finding(
                "PA501",
                "error",
                f"as written, in its own {what}, the script doesn't train like float32: {detail}",
                fix,
                location=where,
                casts=listed,
            )
        ]
    if not places or explained or not _keeps_low(run):
        return []
    message = (
        f"the script casts to {what} by itself; what it keeps there (weights, averages, counters) does not change when "
        "something too small is added to it"
    )
    fix = "keep weights, moving averages and accumulators in float32"
    return [finding("PA503", "note", message, fix, location=where, casts=listed)]


def _cast(cast: Seen) -> str:
    through = f" (in {cast['through']['path']}:{cast['through']['line']})" if cast.get("through") else ""
    return f"{cast['path']}:{cast['line']} {cast['dtype']}{through}"


def _outside(run: RunResult) -> str:
    """Low-precision products outside of all modules, such as an optimizer's, which the script may not have meant
    autocast to affect: each loses little, but what is computed from them may lose much."""
    products = [e for e in seen_in(run) if e["kind"] == "absorbed" and category(e["op"]) == "lower"]
    first = min(products, key=lambda entry: entry["line"], default=None)
    if first is None:
        return ""
    return (
        f"; matrix products outside of all modules run in {first['dtype']} too, the first of them {first['op']} at "
        f"{first['path']}:{first['line']}"
    )


def _likely(audit: Audit) -> str:
    """The most severe ban for the format of the script's own autocast: an eps that becomes zero before a logarithm,
    say."""
    own = [ban for ban in audit.bans if ban.format == audit.reference.baseline.get("autocast")]
    worst = min(own, key=lambda ban: SEVERITIES.index(ban.severity), default=None)
    if worst is None:
        return ""
    at = f", at {worst.location.path}:{worst.location.line}" if worst.location else ""
    return f"; the likeliest cause is in {worst.fqn or 'the model itself'}: {worst.why}{at}"


def _keeps_low(run: RunResult) -> bool:
    """Whether any low-precision tensor changes between steps, unlike frozen weights and copies of float32 master
    weights."""
    return any(entry["kind"] in ("state", "trained") for entry in seen_in(run))
