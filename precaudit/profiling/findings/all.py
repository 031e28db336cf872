"""Findings from the rules, the error budget and the trials, with messages for the user."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from precaudit.finding import finding, ranked
from precaudit.model import Finding, Location, Plan, Severity, Verification
from precaudit.planning.budget import BIAS_LIMIT, RHO_LIMIT, SNR_LIMIT, GradientError, LostGradients
from precaudit.planning.planner import default_format
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import Audit
from precaudit.profiling.culprits import roughest
from precaudit.profiling.findings.as_written import of_as_written
from precaudit.profiling.findings.half_weights import keeping_pace, lagging, of_half_weights, of_standing_still
from precaudit.profiling.findings.underflow import of_loss_scale
from precaudit.profiling.findings.unsound import Origin, of_float32
from precaudit.tracing.ops import CASTS
from precaudit.tracing.records import Trace
from precaudit.verification.verdict import OUTSIDE
from precaudit.words import listing

_STAY = "stay in float32 for this script, or mend what the other findings name"
_DECORATE = (
    "decorate the function's forward with torch.amp.custom_fwd(device_type='cuda') and its backward with "
    "torch.amp.custom_bwd(device_type='cuda'), and profile again"
)
_OVERFLOWS = ("PA101", "PA102", "PA103", "PA107")


def all_findings(
    audit: Audit, plan: Plan, verification: Verification, origin: Origin | None = None
) -> tuple[Finding, ...]:
    """All findings, errors first; within a severity in the order of the stages."""
    as_written, lost = of_as_written(audit, verification), list(of_float32(audit, verification, origin))
    if not all(map(math.isfinite, audit.reference.losses)):  # there is nothing to be unlike
        as_written = [each for each in as_written if each.rule != "PA501"]
    pace, behind = keeping_pace(audit), lagging(audit)
    as_written = [_measured(each, behind) for each in as_written]
    deviates = any((each.rule, each.severity) == ("PA501", "error") for each in as_written)
    found = [
        *_of_bypassed(audit.trace),
        *_of_bans(audit.bans, plan, _own_casts(audit)),
        *of_half_weights(audit, pace),
        *([] if any(each.rule == "PA303" for each in as_written) else of_standing_still(audit)),
        *_of_errors(audit, plan),
        *of_loss_scale(audit, plan, deviates),
        *(_as_banned(each, audit.bans, _own_casts(audit)) for each in as_written),
        *(lost or _of_failure(verification)),  # then a plan's failure says nothing more
        *_of_repairs(verification),
    ]
    return tuple(ranked(_told_once(found, pace)))


def _measured(each: Finding, behind: set[str]) -> Finding:
    """A state of a module that was measured to lag behind float32 is an error, whatever the training loss shows."""
    stagnates = each.rule == "PA303" and "lost" in each.evidence and "role" not in each.evidence
    return replace(each, severity="error") if stagnates and each.fqn in behind else each


def _told_once(found: Sequence[Finding], pace: Mapping[str, bool]) -> list[Finding]:
    """Findings without duplicates: a weight whose updates are rounded away (PA301) is also a stagnating state (PA303),
    and neither counts for one that keeps pace with float32's."""
    modules: dict[str, bool] = {}
    for name, kept in pace.items():
        module = name.rpartition(".")[0]
        modules[module] = modules.get(module, True) and kept
    weights = {each.fqn for each in found if each.rule == "PA301"} | {fqn for fqn, kept in modules.items() if kept}
    return [each for each in found if each.rule != "PA303" or each.fqn not in weights or "role" in each.evidence]


def _of_bypassed(trace: Trace) -> list[Finding]:
    """PA003: modules whose `forward` is called directly: their own operations are outside of every scope, in the audit
    and under a plan."""
    if not trace.bypassed:
        return []
    names, place = listing([fqn or "the model" for fqn in trace.bypassed], 3), next(iter(trace.bypassed.values()))
    message = (
        f"{names}: forward is called directly, which runs no hooks: what the module computes itself was not "
        "audited, and stays in float32 under the plan"
    )
    fix = "call the module itself, model(x) instead of model.forward(x), or super().__call__(x) inside its own __call__"
    return [finding("PA003", "warning", message, fix, location=place, modules=list(trace.bypassed))]


def _own_casts(audit: Audit) -> set[Location | None]:
    """Lines at which the script itself, or a library by its order, casts to a low format."""
    casts = audit.as_written.own_precision.casts if audit.as_written else ()
    return {place for cast in casts for place in (cast.place, cast.through) if place}


def _as_banned(found: Finding, bans: Iterable[Ban], own_casts: Container[Location | None]) -> Finding:
    """An overflow in the script's own precision with the modules in which a plan may not run this operation so, for it
    is the same one there."""
    here = found.op, found.location, found.evidence.get("dtype")
    modules = tuple(ban.fqn for ban in bans if (ban.op, ban.location, ban.format) == here)
    if found.rule != "PA307" or not modules or found.location in own_casts:
        return found
    return replace(found, evidence={**found.evidence, "formats": found.evidence["dtype"], "modules": modules})


def _of_bans(bans: Iterable[Ban], plan: Plan, own_casts: Container[Location | None] = ()) -> list[Finding]:
    """Findings on bans: errors for the plan's own formats; for others, notes on what would go wrong. No plan changes
    what the script itself casts: the evidence says so."""
    used = {plan.default, *plan.modules.values()}
    merged: dict[tuple[str, str, str], list[Ban]] = {}
    for ban in _by_their_cause(list(bans)):
        merged.setdefault((ban.rule, ban.fqn, ban.op), []).append(ban)
    found = []
    for (rule, fqn, op), group in merged.items():
        first = next((ban for ban in group if ban.format in used), group[0])
        formats = ", ".join(ban.format for ban in group)
        found.append(
            finding(
                rule,
                first.severity if first.format in used else "note",
                f"{fqn or 'the model'}: {first.why}",
                first.fix,
                fqn,
                op,
                first.location,
                formats=formats,
                value=first.value,
                **({"cast_by": "the script"} if op in CASTS and first.location in own_casts else {}),
            )
        )
    return found


def _by_their_cause(bans: Sequence[Ban]) -> list[Ban]:
    """Bans without a PA106 for an operation that becomes non-finite where the overflow itself is reported."""
    reported = {(ban.fqn, ban.op, ban.format) for ban in bans if ban.rule in _OVERFLOWS and ban.severity == "error"}
    return [ban for ban in bans if ban.value != math.inf or (ban.fqn, ban.op, ban.format) not in reported]


def _of_errors(audit: Audit, plan: Plan) -> list[Finding]:
    """PA201: a format that is over budget for the whole model in some phase; only a note where the plan prefers another
    and the script doesn't use it either."""
    used = {plan.default, *plan.modules.values(), audit.reference.own_precision.autocast}
    over: dict[str, list[GradientError]] = {}
    for error in audit.errors:
        if not error.within_budget:
            over.setdefault(error.format, []).append(error)
    found = []
    for format_name, errors in over.items():
        spared = format_name not in used and default_format((plan.default, format_name)) == plan.default
        found.append(_over_budget(format_name, errors, "note" if spared else "warning", audit, plan))
    return [*found, *map(_of_lost, audit.lost)]


def _of_lost(lost: LostGradients) -> Finding:
    names = listing(name or "the model itself" for name in lost.causes)
    message = (
        f"{lost.fqn}: in {lost.format} its gradients are off by {lost.error:.0%} of their size, and too small beside "
        f"the rest of the model's to show in the loss{f'; most of the error comes from {names}' if names else ''}"
    )
    fix = f"keep {names or lost.fqn} out of {lost.format}{', as the plan does' if names else ''}"
    alone = lost.causes[0] if len(lost.causes) == 1 else None
    several = _several(lost.causes)
    return finding("PA201", "warning", message, fix, alone, error=lost.error, formats=lost.format, **several)


def _several(blamed: tuple[str, ...]) -> dict[str, Any]:
    """Evidence for the modules to blame where they are several, for which a finding has no place."""
    return {"modules": blamed} if len(blamed) > 1 else {}


def _over_budget(
    format_name: str, errors: list[GradientError], severity: Severity, audit: Audit, plan: Plan
) -> Finding:
    """The finding on one format; the evidence is its worst phase."""
    error = min(errors, key=lambda each: each.snr)
    blamed = audit.blamed.get(format_name, ())
    alone = blamed[0] if len(blamed) == 1 else None
    worst = audit.culprit if alone is not None else None
    names = listing(name or "the model itself" for name in blamed)
    most = f"; most of the error comes from {names}" if blamed else ""
    if worst is not None:
        rough = worst is roughest(audit.trace, worst.fqn, format_name)
        alone_off = f", where {worst.op} alone is off by {worst.local_error.get(format_name, 0.0):.0%} of its result"
        most += alone_off if rough else f", from its {worst.op}"
    other = f"use {plan.default} instead of {format_name}, as the plan does" if plan.default != format_name else ""
    allowed = f"{SNR_LIMIT**-0.5:.0%}, {RHO_LIMIT:.0%}, {BIAS_LIMIT:.0%}"
    message = (
        f"with the whole model in {format_name} rounding changes the gradient too much "
        f"({'; '.join(map(_in_words, errors))}; allowed: {allowed}){most}"
    )
    return finding(
        "PA201",
        severity,
        message,
        f"keep {names} out of {format_name}, as the plan does" if blamed else other,
        alone,
        worst.op if worst else None,
        worst.place(format_name) if worst else None,
        probe=error.label,
        rho=error.rho,
        snr=error.snr,
        bias=error.bias,
        evaluations=error.evaluations,
        formats=format_name,
        **_several(blamed),
    )


def _in_words(error: GradientError) -> str:
    """The three measures of the error budget in one phase of training."""
    size, noise, bias = (
        "an unknown part" if math.isnan(value) else f"{value:.0%}" for value in (error.relative, error.rho, error.bias)
    )
    return f"{error.phase}: by {size} of its size, {noise} of the variance between batches, {bias} in every batch alike"


def _of_repairs(verification: Verification) -> list[Finding]:
    """PA601: repairs that trials made or tried."""
    went = "needed" if verification.verdict == "pass" else "was moved to"
    return [
        finding(
            "PA601",
            "warning",
            f"{r.fqn or 'the model itself'}{': ' + r.op if r.op else ''} {went} {r.target}: {r.why}",
            "the plan has it in " + r.target,
            r.fqn,
            r.op,
            r.location,
            round=r.round,
            formats=r.source,
        )
        for r in verification.repairs
    ]


def _of_failure(verification: Verification) -> list[Finding]:
    """PA602: a plan that no repair fixed."""
    if verification.verdict != "fail":
        return []
    message = f"no low-precision plan was verified: {verification.reason}"
    return [finding("PA602", "error", message, _DECORATE if OUTSIDE in verification.reason else _STAY)]
