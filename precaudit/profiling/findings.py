"""Findings in a person's words, from what the rules forbade, what the budget showed and what trials ran into."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from precaudit.model import Finding, Location, Plan, Severity, Verification
from precaudit.planning.budget import GradientError
from precaudit.planning.rules import Ban
from precaudit.profiling.audit import Audit
from precaudit.running.job import RunResult
from precaudit.verification.statistics import MARGIN_CAP, comparison_window, diverged, relative_differences

_STRAYED = 10.0
"""One pair shows a difference, not its spread: only one this many margins wide is called an error."""


def fingerprint(rule: str, fqn: str | None, op: str | None) -> str:
    """Stable while the layer and the rule are the same: lines may move, numbers may change."""
    return hashlib.sha256(f"{rule}:{fqn}:{op}".encode()).hexdigest()[:16]


def _finding(
    rule: str,
    severity: Severity,
    message: str,
    suggestion: str,
    fqn: str | None = None,
    op: str | None = None,
    location: Location | None = None,
    **evidence: object,
) -> Finding:
    return Finding(
        rule,
        severity,
        message,
        suggestion,
        fqn,
        op,
        location,
        evidence,
        fingerprint(rule, fqn, op),
    )


def all_findings(audit: Audit, plan: Plan, verification: Verification) -> tuple[Finding, ...]:
    """Errors first; within a severity in the order of the stages."""
    found = [
        *_of_bans(audit.bans, plan),
        *_of_optimizer(audit),
        *_of_errors(audit.errors),
        *_of_loss_scale(audit, plan),
        *_of_as_written(audit, verification),
        *_of_verification(verification),
    ]
    rank = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda f: rank[f.severity]))


def _of_bans(bans: Iterable[Ban], plan: Plan) -> list[Finding]:
    """An error where the format is the plan's own; elsewhere what would go wrong is a note."""
    used = {plan.default, *plan.modules.values()}
    merged: dict[tuple[str, str, str], list[Ban]] = {}
    for ban in bans:
        merged.setdefault((ban.rule, ban.fqn, ban.op), []).append(ban)
    found = []
    for (rule, fqn, op), group in merged.items():
        first = next((ban for ban in group if ban.format in used), group[0])
        formats = ", ".join(ban.format for ban in group)
        found.append(
            _finding(
                rule,
                first.severity if first.format in used else "note",
                f"{fqn or 'the model'}: {first.why}",
                first.fix,
                fqn,
                op,
                first.location,
                formats=formats,
                value=first.value,
            )
        )
    return found


def _of_optimizer(audit: Audit) -> list[Finding]:
    """PA301, PA302: what the script itself keeps in half precision."""
    found = []
    written = audit.as_written.trace if audit.as_written and audit.as_written.trace else None
    for layer in written.layers if written else ():
        states = [t for t in layer.tensors if t.role == "optimizer_state" and t.dtype in ("float16", "bfloat16")]
        weight = next((t for t in layer.tensors if t.role == "weight" and t.dtype in ("float16", "bfloat16")), None)
        update = (
            next((t for t in layer.tensors if t.role == "update" and t.name == weight.name), None) if weight else None
        )
        gradient = layer.tensor("weight_grad", weight.name) if weight else None
        if weight and update and gradient and update.stats.numel:
            moved = update.stats.zeros / update.stats.numel
            idle = gradient.stats.zeros / max(1, gradient.stats.numel)
            if moved - idle > 0.5:
                found.append(
                    _finding(
                        "PA301",
                        "error",
                        f"{layer.fqn}: {moved:.0%} of its updates are rounded away, with weights in {weight.dtype}",
                        "keep float32 master weights: train the float32 model under autocast instead of casting it",
                        layer.fqn,
                        share=moved,
                    )
                )
        for state in states:
            flushed = state.formats.get(state.dtype)
            share = state.stats.zeros / max(1, state.stats.numel)
            if state.dtype == "float16" and (share > 0.01 or (flushed and flushed.underflow_rate > 0)):
                found.append(
                    _finding(
                        "PA302",
                        "error",
                        f"{layer.fqn}: {share:.0%} of {state.name} is zero in float16, and so is Adam's eps",
                        "keep optimizer states in float32",
                        layer.fqn,
                        None,
                        state=state.name,
                        share=share,
                    )
                )
    return found


def _of_errors(errors: Iterable[GradientError]) -> list[Finding]:
    return [
        _finding(
            "PA201",
            "warning",
            f"the whole model in {e.label.partition('@')[0]} disturbs the gradient too much "
            f"({e.label.partition('@')[2]}: rho {e.rho:.2g}, SNR {e.snr:.3g}, bias {e.bias:.2g}; "
            "allowed are rho 0.01, SNR 10, bias 0.2), so the plan does not use it everywhere",
            "",
            rho=e.rho,
            snr=e.snr,
            bias=e.bias,
            evaluations=e.evaluations,
            probe=e.label,
        )
        for e in errors
        if not e.within_budget
    ]


def _of_loss_scale(audit: Audit, plan: Plan) -> list[Finding]:
    """PA202: gradients that float16 would lose without a scale; PA203: no single scale serves all modules."""
    found = []
    for layer in audit.trace.layers if plan.default == "float16" else ():
        worst = max(
            (
                t.formats["float16"].flushed_energy
                for t in layer.tensors
                if t.role in ("activation_grad", "weight_grad") and "float16" in t.formats
            ),
            default=0.0,
        )
        if layer.trained and worst > 1e-2:
            found.append(
                _finding(
                    "PA202",
                    "warning",
                    f"{layer.fqn}: {worst:.0%} of its gradient energy vanishes in float16 without a loss scale",
                    "use plan.grad_scaler()",
                    layer.fqn,
                    None,
                    flushed_energy=worst,
                )
            )
    for fqn, why in plan.because.items():
        if "no single scale" in why:
            found.append(_finding("PA203", "warning", f"{fqn}: {why}", "the plan moves it out of float16", fqn))
    return found


def _of_as_written(audit: Audit, verification: Verification) -> list[Finding]:
    """PA501: the script's own low precision doesn't train like float32; PA502: it clips scaled gradients."""
    found = []
    clips = audit.reference.baseline.get("clips_scaled")
    if isinstance(clips, dict):
        found.append(
            _finding(
                "PA502",
                "error",
                f"{clips['function']} clips gradients before scaler.unscale_: their norm has the loss scale in it",
                "call scaler.unscale_(optimizer) before clipping",
                location=Location(clips["path"], clips["line"]),
            )
        )
    run = audit.as_written
    if run is None:
        return found
    casts = run.baseline.get("casts")
    places = [(Location(c["path"], c["line"]), c["dtype"]) for c in casts] if isinstance(casts, list) else []
    where = places[0][0] if places else None
    what = " and ".join(dict.fromkeys(dtype for _, dtype in places)) or "low precision"
    detail = _strays(audit.reference, run, verification.margin)
    if detail is not None:
        found.append(
            _finding(
                "PA501",
                "error",
                f"as written, in its own {what}, the script doesn't train like float32: {detail}",
                "use the plan below instead of the script's own casts and scaler",
                location=where,
                casts=[f"{place.path}:{place.line} {dtype}" for place, dtype in places],
            )
        )
    elif places:
        found.append(
            _finding(
                "PA503",
                "note",
                f"the script casts to {what} by itself; what it keeps there (weights, averages, counters) absorbs "
                "additions smaller than half a unit in the last place",
                "keep weights, moving averages and accumulators in float32",
                location=where,
                casts=[f"{place.path}:{place.line} {dtype}" for place, dtype in places],
            )
        )
    return found


def _strays(reference: RunResult, run: RunResult, margin: float | None) -> str | None:
    """How the script as written differs from float32, where it does by far more than the margin."""
    if run.status not in ("stopped", "ended"):
        return f"it stopped at step {run.steps}" + (f": {run.error.message}" if run.error else "")
    if (lost := diverged(reference.losses, run.losses)) is not None:
        return lost.detail
    steps = min(len(run.losses), len(reference.losses))
    if not steps:
        return None
    window = comparison_window(steps, steps)
    difference = float(relative_differences([reference.losses], [run.losses], window)[0])
    limit = _STRAYED * (margin or MARGIN_CAP)
    return f"its loss ends {difference:+.1%} from float32's" if abs(difference) > limit else None


def _of_verification(verification: Verification) -> list[Finding]:
    """PA601: what a trial had to change; PA602: a plan that no repair saved."""
    found = [
        _finding(
            "PA601",
            "warning",
            f"{r.fqn or 'the model'}{': ' + r.op if r.op else ''} needed {r.target}: {r.why}",
            "the plan has it in " + r.target,
            r.fqn,
            r.op,
            round=r.round,
        )
        for r in verification.repairs
    ]
    unsound = next(
        (t for t in verification.trials if t.plan == "reference" and not all(map(math.isfinite, t.losses))), None
    )
    if unsound is not None:
        step = next(i for i, loss in enumerate(unsound.losses) if not math.isfinite(loss))
        found.append(
            _finding(
                "PA603",
                "error",
                f"float32 itself is not finite from step {step} on (seed {unsound.seed}), by no fault of a format",
                "repair the training in float32 first",
                step=step,
            )
        )
    if verification.verdict == "fail":
        found.append(
            _finding(
                "PA602",
                "error",
                f"no low-precision plan was verified: {verification.reason}",
                "stay in float32 (or tf32) for this script, or change what the findings above name",
            )
        )
    return found
