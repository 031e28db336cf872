"""One run of a person's code under instrumentation, in this process: what to measure in, a RunResult out."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from precaudit.errors import PrecauditError
from precaudit.execution.emulated import Emulator
from precaudit.execution.loss_scaling import LossScaler
from precaudit.execution.native import NativePrecision, backward_products
from precaudit.execution.perturbation import Perturbation, jitter, rounded_to
from precaudit.execution.products import own_settings_ignored, tf32
from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.functions import OwnBackward
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.instrument.torchfunction import RAISED_BY
from precaudit.model import Location
from precaudit.ownprecision.baseline import Baseline, CastWatch, eager_only, float32_only
from precaudit.ownprecision.grad_scaler import OwnScaler
from precaudit.ownprecision.regions import OwnRegions
from precaudit.ownprecision.scaled_gradients import ScaledGradients
from precaudit.ownprecision.stale_casts import StaleCasts
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.running.endstate import FirstValues, LastCalls, end_state
from precaudit.running.job import RunResult, RunSpec, ScriptError, Status
from precaudit.running.monitor import Monitor, Stop
from precaudit.running.probes import GradientProbe
from precaudit.running.seeds import controlled_seeds, repeatable_algorithms
from precaudit.tracing.snapshot import snapshot
from precaudit.tracing.tracer import TraceOptions, Tracer

Report = Callable[[RunResult], None]
Leave = Callable[[RunResult], None]
_REPORT_SECONDS = 0.5
_REPORT_SHARE = 0.02


class _Optimizers(TrainingListener):
    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def step_ended(self, optimizer: Any) -> None:
        if optimizer is not None:
            self.seen[id(optimizer)] = optimizer


@dataclass
class _Session:
    """Everything that listens during one run."""

    names: ModuleNames
    scopes: ModuleScopes
    functions: OwnBackward
    events: TrainingEvents
    baseline: Baseline
    monitor: Monitor
    tracer: Tracer | None
    scaler: LossScaler | None
    probe: GradientProbe | None
    own_low: OwnLowPrecision | None
    scaled: ScaledGradients | None
    optimizers: _Optimizers
    first_values: FirstValues
    last_calls: LastCalls
    observer: Any | None


def _trains(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _assemble(spec: RunSpec, progress: Callable[[int, float], None], stop: Stop) -> _Session:
    """Listeners in the order in which they must hear: precision inside tracing, the monitor last."""
    names, events = ModuleNames(), TrainingEvents()
    scopes = ModuleScopes(names)
    baseline = Baseline(lambda: scopes.current is not None)
    in_island = baseline.in_island
    scaler = None
    if spec.plan is not None:
        execution = NativePrecision if spec.execution == "native" else Emulator
        scopes.listeners.append(execution(spec.plan, scopes, _trains, in_island))
        if spec.plan.loss_scale.mode != "none":
            scaler = LossScaler(spec.plan.loss_scale)
    if spec.jitter:
        scopes.listeners.append(Perturbation(jitter(spec.seed)))
    if spec.perturbed:
        scopes.listeners.append(Perturbation(rounded_to(spec.perturbed)))
    probe = GradientProbe(spec, names, scopes, events, _trains, in_island) if spec.probe_dir else None
    if probe is not None:
        scopes.listeners.append(probe)
    traced = bool(spec.audited) or spec.watch_from is not None
    tracer = Tracer(scopes, _trace_options(spec, baseline), in_island) if traced else None
    if tracer is not None:
        scopes.listeners.append(tracer)
    first_values, last_calls, optimizers = FirstValues(), LastCalls(), _Optimizers()
    scopes.listeners += [first_values, last_calls]
    observer = spec.observer(scopes, in_island) if spec.observer else None
    if observer is not None:
        scopes.listeners.append(observer)
    monitor = Monitor(events, spec.job.steps, progress, stop)
    own_low = OwnLowPrecision(names, baseline.settings, lambda: scopes.current) if _as_written(spec) else None
    scaled = stale = None
    if spec.audited and spec.plan is None:
        scaled, stale = ScaledGradients(names, baseline.settings), StaleCasts(baseline)
        scopes.listeners.append(stale)
    listeners = (scaler, tracer, probe, own_low, scaled, stale, optimizers, monitor)
    events.listeners = [listener for listener in listeners if listener is not None]
    return _Session(
        names,
        scopes,
        OwnBackward(scopes, baseline.island, spec.plan is not None),
        events,
        baseline,
        monitor,
        tracer,
        scaler,
        probe,
        own_low,
        scaled,
        optimizers,
        first_values,
        last_calls,
        observer,
    )


def _as_written(spec: RunSpec) -> bool:
    """Whether the script's own casts are in force and of interest."""
    return spec.precision == "as-written" or (bool(spec.audited) and spec.plan is None and not spec.neutralize)


def _trace_options(spec: RunSpec, baseline: Baseline) -> TraceOptions:
    watch = spec.watch_from
    return TraceOptions(
        audited=(lambda step: step >= watch) if watch is not None else spec.audited.__contains__,
        shadowed=spec.shadowed.__contains__,
        formats=spec.formats,
        per_step=True,
        watch=watch is not None,
        autocast=baseline.autocast_in_force,
    )


def run(
    spec: RunSpec, code: Callable[[], None], report: Report = lambda partial: None, leave: Leave | None = None
) -> RunResult:
    """Run `code` as `spec` says. Every hook, patch and mode is gone when this returns, whatever the code did.

    `report` gets what is known so far, often enough that a killed run loses little, seldom enough to cost little.
    `leave` gets the result, and ends the process, where the script doesn't let itself be stopped.
    """
    if spec.runs is not None:
        return spec.runs(spec, code, leave)
    start = time.perf_counter()

    def settled(result: RunResult) -> RunResult:
        if result.status == "failed":
            # Before models answer once more, which enters them anew.
            where, function = session.functions.running or (session.scopes.raised_in, None)
            result = replace(result, raised_in=where, backward_of=function)
        ended = end_state(
            session.names, session.optimizers.seen.values(), session.last_calls.calls, session.first_values
        )
        if session.observer is not None and result.finished:
            result = replace(result, observed=session.observer.observe())
        return replace(_measured(result, session, time.perf_counter() - start), end_state=ended)

    def stopped() -> None:
        if leave is not None:
            leave(settled(RunResult(spec.label, spec.seed, "stopped")))

    reporter = _Reporter(report)
    stop = Stop(stopped)
    session = reporter.session = _assemble(spec, reporter, stop)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    reporter.result = RunResult(spec.label, spec.seed, "killed")
    with ExitStack() as stack:
        stack.enter_context(controlled_seeds(spec.seed))
        stack.enter_context(eager_only())
        stack.enter_context(repeatable_algorithms())
        if spec.precision != "as-written":
            native_plan = spec.plan if spec.execution == "native" else None
            stack.enter_context(backward_products(native_plan) if native_plan else tf32(False))
            stack.enter_context(own_settings_ignored(session.baseline.settings))
            stack.enter_context(session.baseline.neutralized())
        else:
            stack.enter_context(OwnScaler(session.baseline.settings).scaled_in_gradients())
            if spec.execution == "emulated":
                stack.enter_context(OwnRegions().emulated())
        if spec.neutralize:
            stack.enter_context(float32_only())
        elif spec.audited:
            stack.enter_context(CastWatch(session.baseline.settings))
        if session.own_low is not None:
            stack.enter_context(session.own_low)
        if session.scaled is not None:
            stack.enter_context(session.scaled.installed())
        stack.enter_context(session.scopes.installed())
        stack.enter_context(session.functions.installed())
        stack.enter_context(session.events.installed())
        stack.callback(_remove_hooks, session)
        try:
            return settled(execute(spec, code, stop))
        except PrecauditError as error:
            if not session.monitor.steps:
                raise
            return settled(RunResult(spec.label, spec.seed, "failed", error=script_error(error)))


class _Reporter:
    """Hands partial results on: soon at the start, then as its own cost allows."""

    session: _Session
    result: RunResult

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start = time.perf_counter()
        self._next = 0.0

    def __call__(self, step: int, seconds: float) -> None:
        began = time.perf_counter()
        if began < self._next and step & (step - 1):
            return
        self._report(_measured(self.result, self.session, began - self._start))
        cost = time.perf_counter() - began
        self._next = began + max(_REPORT_SECONDS, cost / _REPORT_SHARE)


def _remove_hooks(session: _Session) -> None:
    for listener in (session.tracer, session.scaler):
        if listener is not None:
            listener.remove()


def execute(spec: RunSpec, code: Callable[[], None], stop: Stop) -> RunResult:
    """Run `code` to its end, and say how it ended. What a script makes of being stopped (it clears up, reports a
    failed training, exits with 1) is no failure of its own."""
    result = RunResult(spec.label, spec.seed, "ended")
    try:
        code()
    except KeyboardInterrupt:
        return replace(result, status="interrupted")
    except PrecauditError:
        raise
    except BaseException as error:
        return replace(result, status="stopped") if stop.asked else _unfinished(result, error)
    return result


def _unfinished(result: RunResult, error: BaseException) -> RunResult:
    if not isinstance(error, SystemExit):
        return replace(result, status="failed", error=script_error(error))
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
    status: Status = "failed" if code else "ended"
    return replace(result, status=status, exit_code=code, error=script_error(error) if code else None)


def script_error(error: BaseException) -> ScriptError:
    """The script's exception, and those behind it, with its own frames only: what precaudit adds is left out."""
    told = traceback.TracebackException.from_exception(error)
    _leave_out_ours(told)
    own = list(told.stack)
    outside = [f for f in own if "site-packages" not in f.filename and "<frozen" not in f.filename] or own
    last = outside[-1] if outside else None
    location = Location(last.filename, last.lineno or 0) if last else None
    text = _in_words(error) or "".join(told.format())
    return ScriptError(type(error).__name__, str(told), text, location, getattr(error, RAISED_BY, None))


def _leave_out_ours(told: traceback.TracebackException) -> None:
    package = str(Path(__file__).resolve().parents[1])
    told.stack[:] = [f for f in told.stack if not f.filename.startswith(package) and "importlib" not in f.filename]
    for behind in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if behind is not None:
            _leave_out_ours(behind)


def _in_words(error: BaseException) -> str | None:
    """What needs no traceback to be understood."""
    if isinstance(error, SystemExit):
        code = error.code
        return f"the script exited with code {code}" if isinstance(code, int) else f"the script exited: {code}"
    return str(error) if isinstance(error, PrecauditError) else None


def _measured(result: RunResult, session: _Session, seconds: float) -> RunResult:
    monitor, scaler = session.monitor, session.scaler
    return replace(
        result,
        steps=monitor.steps,
        backward_calls=monitor.backward_calls,
        counted=monitor.counted,
        losses=monitor.losses,
        streams=monitor.streams,
        skipped=tuple(scaler.skipped) if scaler else (),
        scales=tuple(scaler.scales) if scaler else (),
        trace=snapshot(session.tracer, session.names) if session.tracer else None,
        differences=session.probe.differences if session.probe else (),
        grids=session.probe.grids if session.probe else (),
        step_seconds=tuple(monitor.step_seconds),
        seconds=seconds,
        baseline=session.baseline.settings,
        on_cuda=session.names.on_cuda,
    )


def flush_output() -> None:
    """A script may have closed its streams, or filled the disk."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
