"""Findings on gradients that float16 loses: without a loss scale, under the script's own, or under any."""

from __future__ import annotations

import math
from collections.abc import Iterator

from precaudit.finding import finding
from precaudit.model import Finding, Layer, Op, Plan, Severity
from precaudit.model.fitting import format_of
from precaudit.model.ranges import residue_limit
from precaudit.ownprecision.records import OwnPrecision
from precaudit.planning.loss_scale import lost_share
from precaudit.profiling.audit import Audit
from precaudit.tracing.records import STOPPING, Trace

_MOVED = "the plan moves it out of float16"


def of_loss_scale(audit: Audit, plan: Plan, deviates: bool) -> list[Finding]:
    """PA202: gradients that float16 loses without a loss scale, or under the script's own scale (an error if its
    training deviates); PA203: no single scale suits all modules."""
    return [*_flushed(audit, plan, deviates), *_conflicts(audit.trace, plan)]


def _flushed(audit: Audit, plan: Plan, deviates: bool) -> Iterator[Finding]:
    own = _own_scale(audit, deviates)
    severity: Severity = "error" if own is not None and deviates else "warning"
    spared = {op.fqn for op in audit.trace.ops if op.autocast == "bfloat16"}
    low = {layer.fqn for layer in audit.trace.layers if own is not None and layer.fqn not in spared}
    low |= {layer.fqn for layer in audit.trace.layers if format_of(plan, layer.fqn) == "float16"}
    place = audit.reference.own_precision.autocast_at if own is not None else None
    scale, fix = _scaling(own, audit.reference.own_precision)
    for layer in audit.trace.trained:
        if layer.fqn in low and (lost := _lost_share(layer, own or 1.0)) > 1e-2:
            name = layer.fqn or "the model itself"
            message = f"{name}: {lost:.0%} of its gradient energy underflows in float16 {scale}"
            yield finding("PA202", severity, message, fix, layer.fqn, None, place, flushed_energy=lost)


def _conflicts(trace: Trace, plan: Plan) -> Iterator[Finding]:
    for fqn, why in plan.because.items():
        if "no single scale" in why:
            op = _steepest(trace, fqn)
            name, place = (op.op, op.place("gradient")) if op else (None, None)
            message = f"{fqn or 'the model'}: {why}"
            yield finding("PA203", "warning", message, _MOVED, fqn, name, place, formats="float16")


def _steepest(trace: Trace, fqn: str) -> Op | None:
    """The operation inside a module that has the largest gradient of those that autocast stores in half."""
    own = [op for op in trace.ops if op.fqn == fqn and op.half and op.op not in STOPPING]
    sizes = [record.stats.amax if (record := op.tensor("activation_grad")) else 0.0 for op in own]
    return own[sizes.index(max(sizes))] if any(sizes) else None


def _own_scale(audit: Audit, deviates: bool) -> float | None:
    """The script's own initial loss scale in float16, 1 without one; None for another format, or for a scaler under
    which it trains well, as that may have raised its scale."""
    scripts = audit.reference.own_precision
    if scripts.autocast != "float16":
        return None
    if scripts.grad_scaler is None or not scripts.grad_scaler.used:
        return 1.0
    scale = scripts.grad_scaler.init_scale
    return float(scale) if deviates and scale > 0 else None


def _scaling(own: float | None, scripts: OwnPrecision) -> tuple[str, str]:
    """How the script scales its loss, in words, and the fix."""
    if by_hand := scripts.scaled_by_hand:
        scale = f"at the loss scale that the script keeps by hand, {by_hand:g} at first"
        return scale, "begin with a larger scale, or use bfloat16"
    if own is None:
        return "without a loss scale", "use plan.grad_scaler()"
    if scripts.grad_scaler is None:
        return "without a loss scale, as the script's own autocast has it", "use torch.amp.GradScaler, or bfloat16"
    if not scripts.grad_scaler.used:
        fix = "call scaler.scale(loss).backward(), scaler.step(optimizer) and scaler.update(), or use bfloat16"
        return "without a loss scale: the script makes a GradScaler, and scales no loss by it", fix
    return (
        f"at the loss scale of {own:g} that the script's own GradScaler begins with",
        "let GradScaler begin with a larger init_scale, or use bfloat16",
    )


def _lost_share(layer: Layer, scale: float) -> float:
    """The largest share of a gradient's energy that float16 loses at a loss scale, over a module's gradients."""
    gradients = [t for t in layer.tensors if t.is_gradient and t.formats]
    if scale != 1:
        return lost_share([t.stats for t in gradients], math.floor(math.log2(scale)))
    limit = residue_limit(t.stats for t in gradients)
    significant = (t for t in gradients if t.stats.rms >= limit)
    return max((t.formats["float16"].flushed_energy for t in significant), default=0.0)
