"""The facts about the job in a report: script, options, and notes on unexpected events."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from precaudit.hardware.peaks import Gpu
from precaudit.profiling.audit import Audit
from precaudit.profiling.settings import Settings
from precaudit.running.job import OF_OPTIMIZER, Job, RunResult

_OWN = {"autocast": "autocast", "plan": "plan", "grad_scaler": "GradScaler"}

_LEFT_OFF = {
    "accelerate": "the script asks accelerate for float16, which it leaves off on a CPU: as written the script trained "
    "in float32, and its own mixed precision was not measured",
    "grad_scaler": "the script's own GradScaler was disabled (enabled=False) and no autocast region enabled: what it "
    "does elsewhere in mixed precision of its own was not measured",
}


def job_facts(job: Job, settings: Settings, audit: Audit, formats: Sequence[str], target: Gpu) -> dict[str, Any]:
    """The `job` of a report."""
    run = audit.reference
    return {
        "kind": job.kind,
        "script": job.target,
        "argv": list(job.argv),
        "options": settings.options(),
        "steps": run.steps,
        "steps_requested": job.steps,
        "counted": run.counted,
        "backward_at": list(dict.fromkeys(stream.partition(OF_OPTIMIZER)[0] for stream in run.streams)),
        "optimizer_of_loss": list(run.turns),
        "seeds": settings.pairs,
        "target": target.name,
        "formats": list(formats),
        "device": job.device,
        "quick": settings.quick and settings.verify,
        "stopped": _stopped(run),
        "launcher": "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else None,
        "models": list(audit.trace.models),
        "audited_steps": audit.trace.audited_steps,
        "baseline": run.own_precision.facts() | _seen_as_written(audit),
        "gradient_errors": [
            {"probe": e.label, "rho": e.rho, "snr": e.snr, "bias": e.bias, "evaluations": e.evaluations}
            for e in audit.errors
        ],
        "notes": _notes(job, settings, audit),
    }


def _stopped(run: RunResult) -> str:
    if run.status == "killed" or run.error is None:  # by whom is not known, even where it was often for memory
        return run.status
    causes = {
        "unlaunched": run.error.is_lack_of_launcher,
        "unroomed": run.error.is_lack_of_memory,
        "unequipped": run.error.is_lack_of_module,
        "unanswered": run.error.is_lack_of_input,
        "without_gpu": run.error.is_lack_of_gpu,
        "misused": run.error.is_wrong_usage,
        "unable": run.is_ours,
    }
    return next((name for name, applies in causes.items() if applies), run.status)


def _notes(job: Job, settings: Settings, audit: Audit) -> list[str]:
    """Notes on what the user might not expect."""
    run = audit.reference
    notes = [settings.unheeded] if settings.unheeded else []
    if run.status == "ended" and run.steps < job.steps:
        notes.append(f"the script ended after {run.steps} of {job.steps} steps; everything refers to those")
    own = [name for key, name in _OWN.items() if getattr(run.own_precision, key)]
    if own:
        were = "were" if len(own) > 1 else "was"
        notes.append(f"the script's own {' and '.join(own)} {were} off in the float32 runs and under the plan")
    left_off = run.own_precision.left_off
    if left_off and not (own or run.on_cuda):
        notes.append(_LEFT_OFF[left_off])
    if not audit.job.asserts:
        notes.append("the script asserts dtypes of its own autocast; its assert statements were skipped")
    if audit.neutralize:
        notes.append("the script's own casts to low precision were float32 in the reference and under the plan")
    if audit.replay is not None and not audit.starts_alike:
        notes.append(
            f"run again from the same seed, float32 began with a loss of {audit.replay.losses[0]:.4g} instead of "
            f"{run.losses[0]:.4g}: runs may differ for other reasons than the plan. Seed every random generator that "
            "the script uses, and don't let it resume from what an earlier run saved"
        )
    if audit.strayed is not None:
        notes.append(
            f"after steps in low precision, float32 had another loss at step {audit.strayed} than before: the script "
            "seems to draw its batches by what its models answered. Gradients are compared up to there only"
        )
    return notes


def _seen_as_written(audit: Audit) -> dict[str, object]:
    """What only the run as written tells of the script's own precision: where it changes its gradients and, as far as
    known, the lines of its casts, which are disabled in the reference. Loaded tensors have none."""
    if audit.as_written is None:
        return {"casts": []} if audit.neutralize else {}
    own = audit.as_written.own_precision
    changes = {"changes_gradients": asdict(own.changes_gradients)} if own.changes_gradients else {}
    return changes | ({"casts": [asdict(cast) for cast in own.casts]} if audit.neutralize else {})
