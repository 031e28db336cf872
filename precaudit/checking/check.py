"""`check`: one short float32 run, and the checks on its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from precaudit import __version__
from precaudit.checking.coverage import coverage
from precaudit.checking.deployments import deployments, formats_of
from precaudit.checking.loss_scale import loss_scale
from precaudit.checking.models import the_planned, view_models
from precaudit.checking.outcomes import hard_inputs, outputs
from precaudit.checking.ranges import ranges
from precaudit.checking.records import Answer, CheckReport, CheckSettings, Deployment, Observed, ObserverSpec
from precaudit.checking.target import target
from precaudit.checking.verified import verified
from precaudit.errors import ExitCode, PrecauditError, require
from precaudit.hardware.peaks import Gpu, get_gpu
from precaudit.model import Plan
from precaudit.profiling.reference import in_float32
from precaudit.running.job import Job, RunResult, RunSpec, require_target
from precaudit.tracing.records import Trace
from precaudit.words import NOT_NATIVE, TORCHRUN, plural

Runner = Callable[[RunSpec], RunResult]


def check_job(job: Job, plan: Plan, settings: CheckSettings, runner: Runner) -> CheckReport:
    """Whether `plan` holds for the job's models, its data and the target."""
    gpu = _gpu(plan, settings)
    wanted = deployments(plan, settings)
    run = _run(job, wanted, settings, runner)
    observed: Observed = run.observed or Observed()
    _require_measurable(run, observed)
    require(settings.execution in ("auto", observed.execution), NOT_NATIVE)
    trace = run.trace or Trace()
    planned = the_planned(view_models(plan, observed, trace), trace)
    first = coverage(planned, plan, trace, _seen(job, run, observed))
    return CheckReport(
        answers=(
            *verified(plan, wanted),
            first,
            *(answer for each in wanted for answer in _answers(run, observed, each, gpu)),
        ),
        deployments=wanted,
        target=gpu.name,
        outputs=observed.outputs,
        hard_inputs=observed.hard_inputs,
        layers=trace.layers,
        execution=observed.execution,
        job=_job_facts(job, run, observed),
        precaudit_version=__version__,
    )


def _gpu(plan: Plan, settings: CheckSettings) -> Gpu:
    try:
        return get_gpu(settings.target or plan.target)
    except PrecauditError as error:
        hint = "" if settings.target else ": that is the plan's own target; name another one with --target"
        raise PrecauditError(f"{error}{hint}") from None


def _run(job: Job, wanted: tuple[Deployment, ...], settings: CheckSettings, runner: Runner) -> RunResult:
    """Run the script in float32, with its own low precision disabled."""
    spec = RunSpec(
        job,
        "check",
        audited=frozenset(range(job.steps)),
        shadowed=frozenset({0, job.steps // 2, job.steps - 1}),
        formats=tuple(dict.fromkeys(name for each in wanted for name in formats_of(each.plan))),
        observer=ObserverSpec(wanted, settings.execution),
    )
    return in_float32(spec, runner).run


def _require_measurable(run: RunResult, observed: Observed) -> None:
    if run.status == "interrupted":
        raise KeyboardInterrupt
    require_target(run)
    if not run.finished:
        text = run.error.traceback if run.error else run.status
        code = ExitCode.USAGE if run.is_ours else ExitCode.SCRIPT_FAILED
        lacks = run.error is not None and run.error.is_lack_of_launcher
        hint = f"\nrun check as the one process of a launcher: {TORCHRUN} check --plan PLAN SCRIPT" if lacks else ""
        raise PrecauditError(f"{run.failure}:\n{text}{hint}", code)
    if not observed.modules:
        raise PrecauditError(
            "nothing to measure: no torch.nn.Module with parameters was called. Give check the script that trains "
            "the model, or a model file with build_model() and batches()",
            ExitCode.NOTHING_TO_MEASURE,
        )


def _answers(run: RunResult, observed: Observed, deployment: Deployment, gpu: Gpu) -> tuple[Answer, ...]:
    views = view_models(deployment.plan, observed, run.trace or Trace())
    return (
        ranges(run, views, deployment, formats_of(deployment.plan)),
        *loss_scale(run.trace or Trace(), views, deployment),
        target(gpu, deployment),
        outputs(observed, deployment),
        hard_inputs(observed, deployment),
    )


def _seen(job: Job, run: RunResult, observed: Observed) -> str:
    if job.kind == "inference":
        return f"in {plural(observed.calls, 'call')} in eval mode"
    return f"in {run.taken}"


def _job_facts(job: Job, run: RunResult, observed: Observed) -> Mapping[str, Any]:
    return {
        "kind": job.kind,
        "script": job.target,
        "argv": list(job.argv),
        "steps": run.steps,
        "steps_requested": job.steps,
        "counted": run.counted,
        "calls": observed.calls,
        "stopped": run.status,
        "models": list(dict.fromkeys(facts.model for facts in observed.modules)),
        "device": job.device,
    }
