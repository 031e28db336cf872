"""One instrumented run of the user's code in this process: a RunSpec in, a RunResult out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch

from precaudit.errors import PrecauditError
from precaudit.running.assembly import Session, installed
from precaudit.running.job import RunResult, RunSpec, Status
from precaudit.running.monitor import Stop, StopTraining
from precaudit.running.script_errors import record_of, script_error
from precaudit.tracing.snapshot import snapshot

Report = Callable[[RunResult], None]
Leave = Callable[[RunResult], None]
_REPORT_SECONDS, _REPORT_SHARE = 0.5, 0.02
"""The least time between partial results, and the largest share of the run's time that they may take."""


def run(
    spec: RunSpec, code: Callable[[], None], report: Report = lambda partial: None, leave: Leave | None = None
) -> RunResult:
    """Run `code` as `spec` says. All hooks, patches and modes are removed when this returns or raises.

    `report` receives partial results: often enough that a killed run loses little, seldom enough to cost little.
    `leave` receives the result and ends the process of a script that catches StopTraining.
    """
    if spec.runs is not None:
        return spec.runs(spec, code, leave)

    reporter = _Reporter(report, spec)
    stop = stop_of(spec, leave, reporter.settled)
    session = reporter.session = Session(spec, reporter, stop)
    with installed(session, spec):
        try:
            return reporter.settled(execute(spec, code, stop))
        except PrecauditError as error:
            if not session.monitor.steps:
                raise
            return reporter.settled(RunResult(spec.label, spec.seed, "failed", error=script_error(error)))


def stop_of(spec: RunSpec, leave: Leave | None, settled: Callable[[RunResult], RunResult]) -> Stop:
    """What ends a run that is about to begin, with the threads that it may use."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    return Stop(leave and (lambda: leave(settled(RunResult(spec.label, spec.seed, "stopped")))))


class _Reporter:
    """Reports partial results, at first often, then as seldom as their cost demands, and completes the final one."""

    session: Session

    def __init__(self, report: Report, spec: RunSpec) -> None:
        self._report, self._spec = report, spec
        self._latest = RunResult(spec.label, spec.seed, "killed")
        self._start = time.perf_counter()
        self._next = 0.0

    def __call__(self, step: int, seconds: float) -> None:
        began = time.perf_counter()
        if began < self._next and step & (step - 1):
            return
        self._latest = _measured(self._latest, self.session, began - self._start)
        self._report(self._latest)
        cost = time.perf_counter() - began
        self._next = began + max(_REPORT_SECONDS, cost / _REPORT_SHARE)

    def settled(self, result: RunResult) -> RunResult:
        """The result with all measurements and the end state."""
        with suppress(StopTraining):
            self.session.events.complete()
        if result.error is not None:
            result = replace(result, error=self.session.blamed(result.error))
        try:
            return self._completed(result)
        except Exception:
            # After a device-side assertion no tensor can be read, and that error would hide the script's own.
            if result.status != "failed":
                raise
            return replace(self._latest, status=result.status, exit_code=result.exit_code, error=result.error)

    def _completed(self, result: RunResult) -> RunResult:
        session = self.session
        if session.observer is not None:
            session.scopes.listeners.remove(session.observer)  # end_state calls the models again
        took = time.perf_counter() - self._start
        ended = session.end_state(self._spec, took)  # no longer than the run itself took
        if session.observer is not None and result.finished:
            result = replace(result, observed=session.observer.observe())
        return replace(_measured(result, session, time.perf_counter() - self._start), end_state=ended)


def execute(spec: RunSpec, code: Callable[[], None], stop: Stop) -> RunResult:
    """Run `code` to its end and tell how it ended. Once a script was asked to stop, neither an exception nor an exit
    code of its cleanup counts as a failure."""
    result = RunResult(spec.label, spec.seed, "ended")
    try:
        code()
    except KeyboardInterrupt as error:
        with suppress(OSError):  # as Python does: the log shows where a script hangs
            os.write(2, script_error(error).traceback.encode("utf-8", "replace"))
        return replace(result, status="interrupted")
    except PrecauditError:
        raise
    except BaseException as error:
        return replace(result, status="stopped") if stop.asked else _unfinished(result, error)
    return result


def _unfinished(result: RunResult, error: BaseException) -> RunResult:
    if not isinstance(error, SystemExit):
        return replace(result, status="failed", error=record_of(error))
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
    status: Status = "failed" if code else "ended"
    return replace(result, status=status, exit_code=code, error=script_error(error) if code else None)


def _measured(result: RunResult, session: Session, seconds: float) -> RunResult:
    monitor, scaler = session.monitor, session.scaler
    return replace(
        result,
        steps=monitor.steps,
        backward_calls=monitor.backward_calls,
        counted=monitor.counted,
        losses=monitor.losses,
        streams=monitor.streams,
        turns=monitor.turns,
        calls=monitor.calls,
        skipped=tuple(scaler.skipped) if scaler else (),
        scales=tuple(scaler.scales) if scaler else (),
        trace=snapshot(session.tracer, session.names) if session.tracer else None,
        differences=session.probe.differences if session.probe else (),
        aliased=session.probe.aliased if session.probe else (),
        half_results=session.probe.half_results if session.probe else frozenset(),
        step_seconds=tuple(monitor.step_seconds),
        seconds=seconds,
        own_precision=session.baseline.seen(),
        on_cuda=session.names.on_cuda,
    )


def flush_output() -> None:
    """Flush both streams; a script may have closed them or filled the disk."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
