"""The audit: one traced float32 run, and one that probes gradients in each format on the same trajectory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from precaudit.errors import ExitCode, PrecauditError
from precaudit.formats import NARROW_FORMATS
from precaudit.model import AS_WRITTEN, REFERENCE, Execution, Op, Plan
from precaudit.planning.budget import GradientError, LostGradients, gradient_error, lost_gradients
from precaudit.planning.planner import Choices, build_plan
from precaudit.planning.rules import Ban, aliased_values, bans
from precaudit.profiling.reference import in_float32
from precaudit.profiling.schedule import Schedule, schedule
from precaudit.running.job import REPLAY, Job, RunResult, RunSpec
from precaudit.tracing.merging import with_half_results
from precaudit.tracing.records import Trace
from precaudit.words import UNDER_TORCHRUN, listing


class Runner(Protocol):
    """Executes runs; `many` may execute independent ones concurrently."""

    def __call__(self, spec: RunSpec) -> RunResult: ...

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]: ...


PROBE_HEADROOM = 2.0
"""Probes measure rounding, not overflow, so they scale the loss by an octave less than training would."""
SAME_START = 1e-4
"""Limit for the relative difference between the first losses of two float32 runs of one seed."""
SAME_BATCH = 1e-3
"""The same limit in later steps: rounding in earlier ones leaves traces in averages and memories."""
_FEWEST = 10
_TRIED = ("PA105", "PA106")


@dataclass(frozen=True)
class Audit:
    """The result of the audit.

    - `reference`: the float32 run of seed 0; `as_written`: the run in the script's own low precision, if it has any.
    - `blamed`: for a format over budget, the few modules that cause most of its error.
    - `culprit`: where that is one module, its operation that is to blame.
    - `execution`: how plans run on the script's device.
    - `lost`: modules whose own gradients are wrong in a format that is within budget.
    - `strayed`: the first step in float32 whose loss was another one than the reference's, as probed steps before it
      had other results.
    """

    job: Job
    reference: RunResult
    trace: Trace
    bans: tuple[Ban, ...] = ()
    errors: tuple[GradientError, ...] = ()
    as_written: RunResult | None = None
    replay: RunResult | None = None
    replay_spec: RunSpec | None = None
    blamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    culprit: Op | None = None
    execution: Execution = "emulated"
    lost: tuple[LostGradients, ...] = ()
    strayed: int | None = None

    @property
    def complete(self) -> bool:
        return self.reference.finished

    @property
    def neutralize(self) -> bool:
        """Whether the script's own casts to low precision had to be undone for the reference."""
        return self.replay_spec is not None and self.replay_spec.neutralize

    @property
    def starts_alike(self) -> bool:
        """Whether two float32 runs of the same seed began with the same loss."""
        return self.replay is None or not self.replay.losses or _begin_alike(self.reference, self.replay, SAME_START)

    def plan_in(self, default: str, formats: tuple[str, ...]) -> Plan:
        """A plan with the whole model in one format, save what the static rules forbid, which gets one of `formats`."""
        return build_plan(self.trace, Choices(formats, "", self.bans, default=default, steps=self.job.steps))


def run_audit(job: Job, formats: tuple[str, ...], execution: Execution, runner: Runner, folder: str) -> Audit:
    """Trace the script in float32, saving gradients in `folder`. After a failure the measurements so far are returned.

    The audit is repeated where the script ends early, since the schedule depends on the number of steps, and where the
    second run starts differently, since the first may have prepared something (a dataset) that both then find.
    """
    audit = _audited(job, formats, execution, runner, folder)
    if _is_short(audit, job):
        job = audit.job
        audit = _audited(job, formats, execution, runner, folder)
    if not audit.starts_alike:
        audit = _audited(job, formats, execution, runner, folder)
    if audit.replay is not None:
        require_same_start(audit.reference, audit.replay)
    return audit


def _audited(job: Job, formats: tuple[str, ...], execution: Execution, runner: Runner, folder: str) -> Audit:
    scheduled = schedule(job.steps, _probed(formats))
    spec = RunSpec(
        job,
        REFERENCE,
        audited=scheduled.audited,
        shadowed=scheduled.shadowed,
        formats=formats,
        probe_dir=folder,
        probe_save=scheduled.saved,
        execution=execution,
    )
    found = in_float32(spec, runner)
    reference = found.run
    execution = execution if reference.on_cuda else "emulated"  # the CPU's autocast has other rounding points
    spec = replace(found.spec, execution=execution, patience=reference.patience)
    as_written = _as_written(found.first, spec, runner)
    trace = reference.trace or Trace()
    # There are no files where the script takes gradients with torch.autograd.grad.
    saved = frozenset(step for step in scheduled.saved if (Path(folder) / f"{step}.pt").exists()) or scheduled.saved
    audit = Audit(
        replace(spec.job, steps=reference.steps or job.steps),
        reference,
        trace,
        bans(trace, formats),
        as_written=as_written,
        execution=execution,
        replay_spec=replace(spec, label=REPLAY, audited=frozenset(), shadowed=frozenset(), probe_save=saved),
    )
    if not audit.complete or reference.steps < job.steps or not scheduled.probed.get("init"):
        return audit
    return _with_probes(audit, scheduled, runner)


def _as_written(first: RunResult, spec: RunSpec, runner: Runner) -> RunResult | None:
    """The run in the script's own precision, if it has any; `first` is the run with autocast disabled and the script's
    own casts active. To watch every operation costs many times what the training does, so only a script with such
    precision is watched, in a run of its own."""
    again = RunSpec(spec.job, AS_WRITTEN, precision="as-written", execution=spec.execution, patience=spec.patience)
    written, own = None, first.own_precision
    if own.is_mixed:
        run = runner(again)
        written = replace(run, trace=first.trace, own_precision=replace(run.own_precision, casts=own.casts))
    if spec.neutralize and (written is None or (first.finished and _lacks_kernel(written))):
        run = runner(replace(again, precision="own-casts"))
        seen = run.own_precision
        own = replace(own, low=seen.low, changes_gradients=seen.changes_gradients)
        return replace(run, trace=first.trace, own_precision=own)
    return written


def _lacks_kernel(run: RunResult) -> bool:
    """Whether a run probably failed of this machine alone, which has no half kernel for one of its operations."""
    return not (run.finished or (run.error is not None and run.error.is_scalers_refusal))


def _probed(formats: tuple[str, ...]) -> tuple[str, ...]:
    """The formats to probe: the narrow ones, or tf32 if nothing narrower is allowed."""
    narrow = tuple(name for name in formats if name in NARROW_FORMATS)
    return narrow or (("tf32",) if "tf32" in formats else ())


def _is_short(audit: Audit, job: Job) -> bool:
    """Whether the script took fewer steps than requested, but enough to be probed."""
    return audit.complete and _FEWEST <= audit.reference.steps < job.steps


def _with_probes(audit: Audit, scheduled: Schedule, runner: Runner) -> Audit:
    """Compare each format's gradients with float32's, in both phases, two steps per format in turn. Where the probes
    show other half results than the float32 trace, the rules are applied again and the gradients probed anew."""
    assert audit.replay_spec is not None
    replay = _replay(audit, scheduled, runner)
    harmless = _without_harm(_gradient_errors(scheduled, replay))
    trace = with_half_results(audit.trace, replay.half_results)
    shown = [ban for ban in bans(trace, audit.replay_spec.formats) if ban not in audit.bans]
    if more := [*(_as_tried(ban, harmless) for ban in shown), *aliased_values(trace, replay.aliased, harmless)]:
        audit = replace(audit, trace=trace, bans=(*audit.bans, *more))
        replay = _replay(audit, scheduled, runner)
    audit = replace(audit, replay=replay)
    if not audit.starts_alike:
        return audit  # the gradients are for other weights or another batch, so they can't be compared
    audit, scheduled = _until_it_strays(audit, scheduled)
    return _with_tried(replace(audit, errors=_gradient_errors(scheduled, replay)), scheduled, runner)


def _until_it_strays(audit: Audit, scheduled: Schedule) -> tuple[Audit, Schedule]:
    """The audit and the schedule without the phases in which batches may be others than in the reference: a script that
    draws them by what its model answered, as in prioritized replay, strays once steps were probed."""
    assert audit.replay is not None
    assert audit.replay_spec is not None
    probed = {step for steps in scheduled.probed.values() for step in steps}
    pairs = enumerate(zip(audit.reference.losses, audit.replay.losses, strict=False))
    other = (step for step, (a, b) in pairs if step not in probed and abs(b - a) > SAME_BATCH * abs(a))
    strayed = next(other, None)
    if strayed is None:
        return audit, scheduled
    kept = {phase: steps for phase, steps in scheduled.probed.items() if max(steps) + 1 < strayed}
    scheduled = replace(scheduled, probed=kept)
    labels = tuple(f"@{phase}" for phase in kept)
    return replace(
        audit,
        strayed=strayed,
        replay=replace(
            audit.replay, differences=tuple(d for d in audit.replay.differences if d.label.endswith(labels))
        ),
        replay_spec=replace(audit.replay_spec, probe_save=audit.replay_spec.probe_save & scheduled.saved),
    ), scheduled


def _with_tried(audit: Audit, scheduled: Schedule, runner: Runner) -> Audit:
    """The audit with a warning in the place of an error where an operation loses its result or takes large integers,
    and the gradient hardly changes with it in the format: the difference between two iterates that tells when to stop,
    say, or the samples of audio."""
    lossy = [
        ban for ban in audit.bans if ban.rule in _TRIED and ban.format in scheduled.formats and ban.value != math.inf
    ]
    if not lossy or not scheduled.probed:
        return audit
    others = tuple(ban for ban in audit.bans if ban not in lossy)
    tried = _replay(replace(audit, bans=others), scheduled, runner)
    kept = _without_harm(_gradient_errors(scheduled, tried)) if tried.finished else set()
    harmless = {name for name in kept if not lost_gradients(name, tried.differences)}
    return replace(audit, bans=tuple(_as_tried(ban, harmless) if ban in lossy else ban for ban in audit.bans))


def _gradient_errors(scheduled: Schedule, replay: RunResult) -> tuple[GradientError, ...]:
    labels = dict.fromkeys(f"{name}@{phase}" for phase in scheduled.probed for name in scheduled.formats)
    errors = (gradient_error(label, replay.differences) for label in labels)
    return tuple(error for error in errors if error)


def _as_tried(ban: Ban, harmless: Collection[str]) -> Ban:
    """The ban, as less than an error where the gradient hardly changed: a mask may well become -inf."""
    return replace(ban, severity="warning") if ban.severity == "error" and ban.format in harmless else ban


def _without_harm(errors: Iterable[GradientError]) -> set[str]:
    """The probed formats that were never over budget and lost no module's gradient."""
    seen: dict[str, bool] = {}
    for error in errors:
        seen[error.format] = seen.get(error.format, True) and error.within_budget and not math.isinf(error.rho)
    return {name for name, harmless in seen.items() if harmless}


def _replay(audit: Audit, scheduled: Schedule, runner: Runner) -> RunResult:
    assert audit.replay_spec is not None
    formats = scheduled.formats
    plans = {name: _probe_plan(audit, name) for name in formats}
    compare: dict[int, tuple[str, Plan]] = {}
    for phase, steps in scheduled.probed.items():
        saved = [step for step in steps if step in audit.replay_spec.probe_save]
        in_a_row = 2 if len(saved) >= 2 * len(formats) else 1  # a step of each optimizer of a GAN
        for i, step in enumerate(saved):
            name = formats[i // in_a_row % len(formats)]
            compare[step] = (f"{name}@{phase}", plans[name])
    return runner(replace(audit.replay_spec, probe_save=frozenset(), probe_compare=compare))


def _probe_plan(audit: Audit, name: str) -> Plan:
    """The whole model in one format, with a loss scale that leaves headroom."""
    plan = audit.plan_in(name, (name, "float32"))
    scale = plan.loss_scale
    if scale.init_scale is None:
        return plan
    return replace(plan, loss_scale=replace(scale, mode="static", init_scale=scale.init_scale / PROBE_HEADROOM))


def require_measurable(audit: Audit) -> None:
    """Raise PrecauditError with the reason where there is nothing to measure."""
    run = audit.reference
    if not audit.complete:
        return
    if run.backward_calls == 0 and not run.losses:
        raise PrecauditError(
            "nothing to measure: the script finished without a backward pass. precaudit audits training; "
            "give it the script that trains, or a model file with build_model, batches and loss (not seen: "
            "training in processes that the script starts itself, and by torch.func.grad without an optimizer; a "
            f"script for torchrun is profiled with {UNDER_TORCHRUN}{_without_gpu()})",
            ExitCode.NOTHING_TO_MEASURE,
        )
    if not audit.trace.trained:
        raise PrecauditError(
            "nothing to measure: no torch.nn.Module with parameters took part in a backward pass. precaudit "
            "plans a precision per module; put the parameters into an nn.Module, built by Python code (one that "
            "torch.jit.load gave can't be looked into), and call it: model(x), not model.forward(x). "
            "A model with computed weights, as in MAML, is called by torch.func.functional_call(model, weights, x)",
            ExitCode.NOTHING_TO_MEASURE,
        )


def _without_gpu() -> str:
    """A hint for a script that leaves its training out where there is no GPU."""
    import torch

    return "" if torch.cuda.is_available() else "; torch finds no GPU here, if the script trains on one only"


def require_same_start(reference: RunResult, run: RunResult, tolerance: float = SAME_START) -> None:
    """Raise PrecauditError where a run of the same seed resumed from what an earlier one left: such runs can't be
    compared."""
    if not (run.stale_files and run.finished) or _begin_alike(reference, run, tolerance):
        return
    seen = "took no step"
    if run.losses:
        seen = f"began with a loss of {run.losses[0]:.4g} where the first one had {reference.losses[0]:.4g}"
    raise PrecauditError(
        "a run of the script went on from where an earlier one had ended: it read "
        f"{listing(run.stale_files, 3)}, which the earlier one had written, and {seen}. precaudit runs a script many "
        "times, and every run has to start from the same state: let the script start anew, even where it finds such "
        "files"
    )


def _begin_alike(reference: RunResult, run: RunResult, tolerance: float) -> bool:
    """Whether the first losses agree; False for a run without losses."""
    if not reference.losses or not run.losses:
        return not reference.losses
    return not abs(run.losses[0] - reference.losses[0]) > tolerance * abs(reference.losses[0])


def chosen_formats(errors: tuple[GradientError, ...], formats: tuple[str, ...]) -> tuple[str, ...]:
    """The formats whose whole-model gradient error is within budget; wider formats are always allowed."""
    over = {error.format for error in errors if not error.within_budget}
    return tuple(name for name in formats if name not in over)
