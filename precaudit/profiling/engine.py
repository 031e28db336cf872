"""`profile`: the stages in order. After any failure the measurements so far are returned as a Report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from precaudit import __version__
from precaudit.errors import ExitCode, PrecauditError
from precaudit.hardware.peaks import Gpu, get_gpu, gpu_for
from precaudit.model import Environment, Execution, Finding, Plan, Repair, Report, Verification
from precaudit.planning.budget import LostGradients, lost_gradients
from precaudit.planning.planner import Choices, build_plan, default_format, fallback, without_loss_scale
from precaudit.profiling.audit import Audit, Runner, chosen_formats, require_measurable, run_audit
from precaudit.profiling.bisect import Search, contributions, of_module
from precaudit.profiling.clock import Clock
from precaudit.profiling.culprits import culprit_of
from precaudit.profiling.environment import environment
from precaudit.profiling.findings.all import all_findings
from precaudit.profiling.findings.unsound import origin_of_nonfinite
from precaudit.profiling.job_facts import job_facts
from precaudit.profiling.settings import Settings
from precaudit.profiling.timing import measure, trained_ops, unmeasured
from precaudit.profiling.trials import verify
from precaudit.running.job import Job, RunResult, require_target
from precaudit.running.scratch import scratch
from precaudit.tensorcores.shapes.eligibility import unreached_findings, with_flops
from precaudit.tensorcores.shapes.padding import alignment_findings
from precaudit.words import NOT_NATIVE

_MOST_LOST = 2
"""How many modules with lost gradients are reported and repaired, as the search for a cause takes several runs each."""


@dataclass(frozen=True)
class Outcome:
    """The report and the exit code; `error` is the message for the user where the script failed."""

    report: Report
    exit_code: ExitCode
    error: str | None = None


def profile_job(job: Job, settings: Settings, runner: Runner, began: float | None = None) -> Outcome:
    """Audit, plan, verify and repair, report; `began` is the time.perf_counter() since which somebody waits for it."""
    start = time.perf_counter() if began is None else began
    clock = Clock(runner)
    where = environment(job.device)
    target = _target(settings, where)
    formats = _formats(settings, target)
    execution = _execution(settings, where)
    with scratch() as folder:
        audit = run_audit(job, formats, execution, clock, folder)
        require_target(audit.reference)
        plan, verification = Plan(target=target.name), Verification(reason=_last_words(audit.reference))
        measured = unmeasured(settings.price)
        error, code = _failure(audit)
        if code is None:
            require_measurable(audit)
            audit = _with_lost(_with_blame(audit, formats, clock), formats, clock)
            if settings.execution == "native" and audit.execution != "native":
                raise PrecauditError(NOT_NATIVE)
            plan, verification = _plan_and_verify(audit, settings, formats, target, clock)
            plan = plan.judged(verification.verdict)
            code = _exit_code(audit, plan, verification, settings)
            measured = measure(audit, plan, target, settings.price, where, runner)
    origin = origin_of_nonfinite(audit, verification, clock)
    report = Report(
        environment=asdict(where),
        job=job_facts(job, settings, audit, formats, target),
        layers=audit.trace.layers,
        ops=with_flops(audit.trace.ops),
        findings=(
            *all_findings(audit, plan, verification, origin),
            *_of_shapes(audit, plan, target),
            *measured.findings,
        ),
        plan=plan,
        verification=verification,
        tensor_cores=measured.tensor_cores,
        performance=clock.performance(time.perf_counter() - start, measured.performance.seconds_measuring or 0.0)
        | asdict(measured.performance),
        cost=measured.cost,
        precaudit_version=__version__,
    )
    return Outcome(report, code, error)


def _of_shapes(audit: Audit, plan: Plan, target: Gpu) -> list[Finding]:
    ops, steps = trained_ops(audit), max(1, audit.trace.audited_steps)
    return [*alignment_findings(ops, plan, target, audit.trace.layers, steps), *unreached_findings(ops, plan)]


def _target(settings: Settings, where: Environment) -> Gpu:
    if settings.target:
        return get_gpu(settings.target)
    return gpu_for(where)


def _formats(settings: Settings, target: Gpu) -> tuple[str, ...]:
    """The requested formats; PrecauditError where the target lacks one of them."""
    if not settings.formats:
        return target.default_formats
    missing = [name for name in settings.formats if name not in (*target.formats, "float32")]
    if missing:
        raise PrecauditError(
            f"{target.name} has no {', '.join(missing)}; its formats: {', '.join(target.formats)}. "
            "Choose another --target or --formats"
        )
    return settings.formats


def _execution(settings: Settings, where: Environment) -> Execution:
    if settings.execution == "native" and not where.cuda:
        raise PrecauditError(NOT_NATIVE)
    if settings.execution == "auto":
        return "native" if where.cuda else "emulated"
    return settings.execution


def _failure(audit: Audit) -> tuple[str | None, ExitCode | None]:
    run = audit.reference
    if run.status == "interrupted":
        return f"interrupted after {run.taken} of the audit", ExitCode.FINDING
    if audit.complete:
        return None, None
    text = run.error.traceback if run.error else run.status
    return f"{text}\n{run.failure}", ExitCode.USAGE if run.is_ours else ExitCode.SCRIPT_FAILED


def _last_words(run: RunResult) -> str:
    """The exception that ended a run, in one line."""
    if run.error is None or run.status == "interrupted":
        return ""
    return run.error.message if run.status == "killed" or run.is_ours else run.error.in_a_line


def _plan_and_verify(
    audit: Audit, settings: Settings, formats: tuple[str, ...], target: Gpu, runner: Runner
) -> tuple[Plan, Verification]:
    formats, unscalable = without_loss_scale(formats, audit.trace)
    choices = _choices(audit, formats, target)
    plan = build_plan(audit.trace, choices)
    if not plan.is_low_precision:
        seen = "is left that could run in a low-precision format" if audit.trace.products else "was seen in a module"
        return plan, Verification(reason=unscalable or f"no matrix product {seen}")
    if not settings.verify:
        return plan, Verification(reason="verification was switched off (--no-verify)")

    def replan(repairs: Sequence[Repair]) -> Plan:
        return build_plan(audit.trace, replace(choices, repairs=(*choices.repairs, *repairs)))

    verification, plan = verify(audit, plan, replan, runner, settings)
    return plan, verification


def _with_blame(audit: Audit, formats: tuple[str, ...], runner: Runner) -> Audit:
    """The audit with the modules that cause the error of the preferred format, if it is over budget and they are
    few."""
    preferred = default_format(formats)
    if audit.replay_spec is None or preferred in ("float32", *chosen_formats(audit.errors, formats)):
        return audit
    search = Search(audit.replay_spec, audit.plan_in(preferred, formats), runner)
    found = contributions(search, audit.trace.products)
    if not found or len(found) * 2 > len(audit.trace.leaves):
        return audit
    audit = replace(audit, blamed={preferred: tuple(item.fqn for item in found)})
    return replace(audit, culprit=culprit_of(audit.trace, search, found[0].fqn)) if len(found) == 1 else audit


def _with_lost(audit: Audit, formats: tuple[str, ...], runner: Runner) -> Audit:
    """The audit with modules whose gradients are lost in a format that is within budget for the whole model, and the
    causes."""
    chosen = default_format(chosen_formats(audit.errors, formats))
    found = lost_gradients(chosen, audit.replay.differences) if audit.replay and audit.errors else []
    if audit.replay_spec is None or not found:
        return audit
    known, lost = {layer.fqn for layer in audit.trace.layers}, []
    search = Search(audit.replay_spec, audit.plan_in(chosen, formats), runner)
    for each in found[:_MOST_LOST]:
        made = contributions(search, audit.trace.products, of_module(each.fqn))
        fqn = each.fqn if each.fqn in known else each.fqn.partition(".")[2]  # which has its model's name in front
        lost.append(replace(each, fqn=fqn, causes=tuple(item.fqn for item in made)))
    return replace(audit, lost=tuple(lost))


def _choices(audit: Audit, formats: tuple[str, ...], target: Gpu) -> Choices:
    """The formats within the error budget. The preferred one is kept if only a few modules exceed the budget, without
    those; where no format is left and no module stands out, training decides."""
    allowed = chosen_formats(audit.errors, formats)
    kept = tuple(Repair(fqn, lost.format, "float32", _why(lost)) for lost in audit.lost for fqn in lost.causes)
    choices = Choices(allowed, target.name, audit.bans, kept, steps=audit.job.steps)
    preferred = default_format(formats)
    if preferred not in audit.blamed:
        undecided = default_format(allowed) == "float32"
        return replace(choices, formats=formats, default=preferred) if undecided else choices
    wide = fallback(preferred, [name for name in allowed if name != "float16"])  # which would need a loss scale
    why = f"in {preferred} it makes most of the gradient's error, which is larger than allowed"
    widened = (
        Repair(fqn, preferred, wide if fqn in audit.trace.products else "float32", why)
        for fqn in audit.blamed[preferred]
    )
    return replace(choices, formats=formats, default=preferred, repairs=(*kept, *widened))


def _why(lost: LostGradients) -> str:
    return f"in {lost.format} it makes the gradients of {lost.fqn} wrong by {lost.error:.0%}"


def _exit_code(audit: Audit, plan: Plan, verification: Verification, settings: Settings) -> ExitCode:
    """The exit code; without verification any plan below float32 counts, unless float32 itself is not finite."""
    if not settings.verify:
        proposed = plan.is_low_precision and all(map(math.isfinite, audit.reference.losses))
        return ExitCode.OK if proposed else ExitCode.FINDING
    verified = verification.verdict in ("pass", "screened") and plan.is_low_precision
    return ExitCode.OK if verified else ExitCode.FINDING
