"""The report of an audit in the user's own loop: measurements, and a plan that is not verified."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from precaudit import __version__
from precaudit.finding import finding
from precaudit.hardware.peaks import gpu_for
from precaudit.model import AS_WRITTEN, REFERENCE, Finding, Layer, Plan, Report, Verification
from precaudit.planning.planner import Choices, build_plan, without_loss_scale
from precaudit.planning.rules import bans
from precaudit.profiling.audit import Audit
from precaudit.profiling.environment import environment
from precaudit.profiling.findings.all import all_findings
from precaudit.running.job import Job, RunResult
from precaudit.tensorcores.shapes.eligibility import with_flops
from precaudit.tracing.merging import over_processes
from precaudit.tracing.records import Trace
from precaudit.words import listing

if TYPE_CHECKING:
    from precaudit.tracing.auditing import Auditing


def report_of(auditing: Auditing) -> Report:
    """The report over all processes of `torchrun`, a collective operation: all of them must call it."""
    trace = over_processes(auditing.trace())
    steps, where = auditing.steps, environment()
    job = Job("script", auditing.name, (), os.getcwd(), steps)
    target = gpu_for(where)
    found = bans(trace, target.default_formats)
    formats, _ = without_loss_scale(target.default_formats, trace)
    choices = Choices(formats, target.name, found, steps=max(1, steps))
    trained = trace.audited_steps > 0 and bool(trace.trained)
    plan = build_plan(trace, choices) if trained else Plan(target=choices.target)
    reason = "an audit measures; it trains nothing of its own" if trained else "no step of this model was seen"
    run = RunResult(REFERENCE, 0, "ended", steps)
    audited = Audit(job, run, trace, found, as_written=RunResult(AS_WRITTEN, 0, "ended", steps, trace=trace))
    return Report(
        environment=asdict(where),
        job={
            "kind": "audit",
            "script": job.target,
            "steps": steps,
            "audited_steps": trace.audited_steps,
            "models": list(trace.models),
            "notes": ["measured in the caller's own loop"],
        },
        layers=trace.layers,
        ops=with_flops(trace.ops),
        findings=(*_not_finite(trace, auditing.scaled), *all_findings(audited, plan, Verification())),
        plan=plan.judged("not_run"),
        verification=Verification(reason=reason),
        precaudit_version=__version__,
    )


def _not_finite(trace: Trace, scaled: bool) -> list[Finding]:
    """PA308: non-finite weights, or non-finite gradients without a scaler. Sums over all steps don't show which came
    first: everything computed with a non-finite weight is non-finite too."""
    weights = [layer.fqn for layer in trace.layers if _lost(layer, "weight")]
    gradients = [] if scaled else [layer.fqn for layer in trace.layers if _lost(layer, "weight_grad")]
    lost, what = (weights, "weights") if weights else (gradients, "gradients")
    if not lost:
        return []
    message = f"{what} are nan or inf ({listing([fqn or 'the model' for fqn in lost], 3)}): the training is lost"
    fix = "go back to a checkpoint from before, and profile the script: precaudit finds the operation that began it"
    return [finding("PA308", "error", message, fix, lost=what)]


def _lost(layer: Layer, role: str) -> bool:
    return any(tensor.stats.nonfinite > 0 for tensor in layer.tensors if tensor.role == role)
