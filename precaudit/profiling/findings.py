"""Findings in a person's words, from what the rules forbade, what the budget showed and what trials ran into."""

from __future__ import annotations

import math
from collections.abc import Iterable

from precaudit.model import Finding, Plan, Verification
from precaudit.planning.budget import GradientError
from precaudit.planning.loss_scale import RESIDUE
from precaudit.planning.rules import Ban
from precaudit.profiling.aswritten import of_as_written
from precaudit.profiling.audit import Audit
from precaudit.profiling.finding import finding


def all_findings(audit: Audit, plan: Plan, verification: Verification) -> tuple[Finding, ...]:
    """Errors first; within a severity in the order of the stages."""
    found = [
        *_of_bans(audit.bans, plan),
        *_of_optimizer(audit),
        *_of_errors(audit.errors),
        *_of_loss_scale(audit, plan),
        *of_as_written(audit, verification),
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
                    finding(
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
                    finding(
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
        finding(
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
        gradients = [t for t in layer.tensors if t.role in ("activation_grad", "weight_grad")]
        loudest = max((t.stats.rms for t in gradients), default=0.0)
        lost = [
            t.formats["float16"].flushed_energy for t in gradients if t.stats.rms >= RESIDUE * loudest and t.formats
        ]
        worst = max(lost, default=0.0)
        if layer.trained and worst > 1e-2:
            found.append(
                finding(
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
            found.append(finding("PA203", "warning", f"{fqn}: {why}", "the plan moves it out of float16", fqn))
    return found


def _of_verification(verification: Verification) -> list[Finding]:
    """PA601: what a trial had to change; PA602: a plan that no repair saved."""
    found = [
        finding(
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
            finding(
                "PA603",
                "error",
                f"float32 itself is not finite from step {step} on (seed {unsound.seed}), by no fault of a format",
                "repair the training in float32 first",
                step=step,
            )
        )
    if verification.verdict == "fail":
        found.append(
            finding(
                "PA602",
                "error",
                f"no low-precision plan was verified: {verification.reason}",
                "stay in float32 (or tf32) for this script, or change what the findings above name",
            )
        )
    return found
