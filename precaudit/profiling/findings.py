"""Findings from the rules, the error budget and the trials, with messages for the user."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from precaudit.finding import finding, place_of, ranked
from precaudit.model import Finding, Layer, Location, Op, Plan, Severity, TensorRecord, Verification
from precaudit.planning.budget import BIAS_LIMIT, RHO_LIMIT, SNR_LIMIT, GradientError, LostGradients
from precaudit.planning.fitting import format_of
from precaudit.planning.loss_scale import RESIDUE, lost_share
from precaudit.planning.planner import default_format
from precaudit.planning.rules import Ban
from precaudit.profiling.aswritten import of_as_written
from precaudit.profiling.audit import Audit
from precaudit.profiling.culprits import roughest
from precaudit.profiling.entries import CAP, casts_in, seen_in
from precaudit.tracing.ops import CASTS
from precaudit.tracing.records import STOPPING, Trace
from precaudit.verification.verdict import OUTSIDE
from precaudit.words import listing

NARROW = ("float16", "bfloat16")
_PACE = 0.9
_MOVED = "the plan moves it out of float16"
_STAY = "stay in float32 for this script, or mend what the other findings name"
_DECORATE = (
    "decorate the function's forward with torch.amp.custom_fwd(device_type='cuda') and its backward with "
    "torch.amp.custom_bwd(device_type='cuda'), and profile again"
)
_OVERFLOWS = ("PA101", "PA102", "PA103", "PA107")


def all_findings(audit: Audit, plan: Plan, verification: Verification) -> tuple[Finding, ...]:
    """All findings, errors first; within a severity in the order of the stages."""
    as_written = of_as_written(audit, verification)
    pace = _keeping_pace(audit)
    deviates = any((each.rule, each.severity) == ("PA501", "error") for each in as_written)
    found = [
        *_of_bypassed(audit.trace),
        *_of_bans(audit.bans, plan, _own_casts(audit)),
        *_of_optimizer(audit, pace),
        *_of_errors(audit, plan),
        *_of_loss_scale(audit, plan, deviates),
        *as_written,
        *(list(_of_float32(audit, verification)) or _of_failure(verification)),  # a plan's failure says nothing more
        *_of_repairs(verification),
    ]
    return tuple(ranked(_told_once(found, pace)))


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
        f"{names}: the script calls forward directly, which runs no hooks: what the module computes itself was not "
        "audited, and stays in float32 under the plan"
    )
    fix = "call the module itself, model(x) instead of model.forward(x)"
    return [finding("PA003", "warning", message, fix, None, None, place, modules=list(trace.bypassed))]


def _own_casts(audit: Audit) -> set[Location | None]:
    """Lines at which the script itself, or a library by its order, casts to a low format."""
    casts = casts_in(audit.as_written.baseline) if audit.as_written else []
    return {place_of(each) for cast in casts for each in (cast, cast.get("through")) if each}


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


def _of_optimizer(audit: Audit, pace: Mapping[str, bool]) -> list[Finding]:
    """PA301, PA302: weights and optimizer states that the script keeps in half precision."""
    run = audit.as_written
    if run is None or run.trace is None:
        return []
    return [
        found for layer in run.trace.layers for found in (*_of_weights(layer, run.baseline, pace), *_of_states(layer))
    ]


def _keeping_pace(audit: Audit) -> dict[str, bool]:
    """The parameters that moved as far as in float32 although updates were rounded away, as with compensated summation
    or stochastic rounding. A name without a model stands for the parameters of that name in all models."""
    run = audit.as_written
    written = run.end_state.learned if run else {}
    pace: dict[str, bool] = {}
    for name, far in audit.reference.end_state.learned.items():
        for key in (name, name.partition(".")[2]) if far else ():
            pace[key] = pace.get(key, True) and written.get(name, 0.0) >= _PACE * far
    return pace


def _of_weights(layer: Layer, baseline: Mapping[str, Any], pace: Mapping[str, bool]) -> Iterator[Finding]:
    """PA301: half weights that absorb their updates, where there is a gradient. Whether a tiny tensor keeps pace is
    judged by the others of its layer."""
    names = {w.name: f"{layer.fqn}.{w.name}".lstrip(".") for w in layer.tensors if w.role == "weight"}
    known = [pace[name] for name in names.values() if name in pace]
    for weight in layer.tensors:
        if weight.role != "weight" or weight.dtype not in NARROW:
            continue
        name = names[weight.name]
        if pace.get(name, bool(known) and all(known)):
            continue
        update, gradient = layer.tensor("update", weight.name), layer.tensor("weight_grad", weight.name)
        if not update or not gradient or not update.stats.numel:
            continue
        moved = _zero_share(update)
        if moved - _zero_share(gradient) > 0.5:
            message = f"{name}: {moved:.0%} of its updates are rounded away, with weights in {weight.dtype}"
            fix = "keep float32 master weights: train the float32 model under autocast instead of casting it"
            place = _cast_to(weight.dtype, baseline)
            yield finding("PA301", "error", message, fix, layer.fqn, None, place, share=moved)
            return


def _cast_to(dtype: str, baseline: Mapping[str, Any]) -> Location | None:
    """The line that first casts to that dtype."""
    return next((place_of(cast) for cast in casts_in(baseline) if cast["dtype"] == dtype), None)


def _of_states(layer: Layer) -> Iterator[Finding]:
    """PA302: optimizer states that are zero in float16 although the gradients are not."""
    for state in layer.tensors:
        if state.role != "optimizer_state" or state.dtype != "float16":
            continue
        parameter, _, kind = state.name.rpartition(".")
        gradient, share = layer.tensor("weight_grad", parameter), _zero_share(state)
        if share - (_zero_share(gradient) if gradient else 0.0) > 0.01:
            eps = ", as Adam's own eps of 1e-8 is" if kind == "exp_avg_sq" else ""
            message = f"{layer.fqn or 'the model itself'}: {share:.0%} of {state.name} is zero in float16{eps}"
            fix = "keep optimizer states in float32"
            yield finding("PA302", "error", message, fix, layer.fqn, state=state.name, share=share)


def _zero_share(tensor: TensorRecord) -> float:
    return tensor.stats.zeros / max(1, tensor.stats.numel)


def _of_errors(audit: Audit, plan: Plan) -> list[Finding]:
    """PA201: a format that is over budget for the whole model in some phase; only a note where the plan prefers another
    and the script doesn't use it either."""
    used = {plan.default, *plan.modules.values(), audit.reference.baseline.get("autocast")}
    over: dict[str, list[GradientError]] = {}
    for error in audit.errors:
        if not error.within_budget:
            over.setdefault(error.label.partition("@")[0], []).append(error)
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
    return finding(
        "PA201", "warning", message, fix, alone, None, None, error=lost.error, formats=lost.format, **several
    )


def _several(blamed: tuple[str, ...]) -> dict[str, object]:
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
    phase = error.label.partition("@")[2]
    return f"{phase}: by {size} of its size, {noise} of the variance between batches, {bias} in every batch alike"


def _of_loss_scale(audit: Audit, plan: Plan, deviates: bool) -> list[Finding]:
    """PA202: gradients that float16 loses without a loss scale, or under the script's own scale (an error if its
    training deviates); PA203: no single scale suits all modules."""
    own = _own_scale(audit, deviates)
    severity: Severity = "error" if own is not None and deviates else "warning"
    spared = {op.fqn for op in audit.trace.ops if op.autocast == "bfloat16"}
    low = {layer.fqn for layer in audit.trace.layers if own is not None and layer.fqn not in spared}
    low |= {layer.fqn for layer in audit.trace.layers if format_of(plan, layer.fqn) == "float16"}
    candidates = [layer for layer in audit.trace.layers if layer.trained and layer.fqn in low]
    place = place_of(audit.reference.baseline.get("autocast_at")) if own is not None else None
    scale, fix = _scaling(own, "grad_scaler" in audit.reference.baseline)
    found = []
    for layer in candidates:
        if (lost := _lost_share(layer, own or 1.0)) > 1e-2:
            name = layer.fqn or "the model itself"
            message = f"{name}: {lost:.0%} of its gradient energy underflows in float16 {scale}"
            found.append(finding("PA202", severity, message, fix, layer.fqn, None, place, flushed_energy=lost))
    for fqn, why in plan.because.items():
        if "no single scale" in why:
            op = _steepest(audit.trace, fqn)
            place = op.place("gradient") if op else None
            message = f"{fqn or 'the model'}: {why}"
            named = op.op if op else None
            found.append(finding("PA203", "warning", message, _MOVED, fqn, named, place, formats="float16"))
    return found


def _steepest(trace: Trace, fqn: str) -> Op | None:
    """The operation inside a module that has the largest gradient of those that autocast stores in half."""
    own = [op for op in trace.ops if op.fqn == fqn and op.half and op.op not in STOPPING]
    sizes = [record.stats.amax if (record := op.tensor("activation_grad")) else 0.0 for op in own]
    return own[sizes.index(max(sizes))] if any(sizes) else None


def _own_scale(audit: Audit, deviates: bool) -> float | None:
    """The script's own initial loss scale in float16, 1 without one; None for another format, or for a scaler under
    which it trains well, as that may have raised its scale."""
    baseline = audit.reference.baseline
    if baseline.get("autocast") != "float16":
        return None
    scaler = baseline.get("grad_scaler")
    if not isinstance(scaler, dict):
        return 1.0
    scale = scaler.get("init_scale")
    return float(scale) if deviates and scale and scale > 0 else None


def _scaling(own: float | None, scaler: bool) -> tuple[str, str]:
    """How the script scales its loss, in words, and the fix."""
    if own is None:
        return "without a loss scale", "use plan.grad_scaler()"
    if not scaler:
        return "without a loss scale, as the script's own autocast has it", "use torch.amp.GradScaler, or bfloat16"
    return (
        f"at the loss scale of {own:g} that the script's own GradScaler begins with",
        "let GradScaler begin with a larger init_scale, or use bfloat16",
    )


def _lost_share(layer: Layer, scale: float) -> float:
    """The largest share of a gradient's energy that float16 loses at a loss scale, over a module's gradients."""
    gradients = [t for t in layer.tensors if t.role in ("activation_grad", "weight_grad") and t.formats]
    if scale != 1:
        return lost_share([t.stats for t in gradients], math.floor(math.log2(scale)))
    loudest = max((t.stats.rms for t in gradients), default=0.0)
    significant = (t for t in gradients if t.stats.rms >= RESIDUE * loudest)
    return max((t.formats["float16"].flushed_energy for t in significant), default=0.0)


def _of_float32(audit: Audit, verification: Verification) -> Iterator[Finding]:
    """PA603: a float32 run with a non-finite loss, with and without verification."""
    runs = [(audit.reference.seed, audit.reference.losses)]
    runs += [(trial.seed, trial.losses) for trial in verification.trials if trial.plan == "reference"]
    unsound = next(((seed, losses) for seed, losses in runs if not all(map(math.isfinite, losses))), None)
    if unsound is not None:
        seed, losses = unsound
        step = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        by_scale = audit.as_written is not None and any(e["kind"] == "runaway" for e in seen_in(audit.as_written))
        why = ": the script's own loss scale runs away there too" if by_scale else ": no number format is to blame"
        message = f"the loss is not finite in float32 itself, from step {step} on (seed {seed}){why}"
        yield finding("PA603", "error", message, CAP if by_scale else "repair the training in float32 first", step=step)


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
