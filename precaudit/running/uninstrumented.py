"""A run without instrumentation except the step counter: does the script itself fail, or only under precaudit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from precaudit.running.job import RunResult, RunSpec


def uninstrumented(
    spec: RunSpec, code: Callable[[], None], leave: Callable[[RunResult], None] | None = None
) -> RunResult:
    """Run `code` from the seed, in its own precision, until the job's steps are taken. torch is imported inside, so
    that processes without it can refer to this function."""
    from precaudit.instrument.events import TrainingEvents
    from precaudit.running.monitor import Monitor
    from precaudit.running.seeds import controlled_seeds
    from precaudit.running.worker import execute, stop_of

    def settled(result: RunResult) -> RunResult:
        return replace(result, steps=monitor.steps)

    events, stop = TrainingEvents(), stop_of(spec, leave, settled)
    monitor = Monitor(events, spec.job.steps, lambda step, seconds: None, stop)
    events.listeners = [monitor]
    with controlled_seeds(spec.seed), events.installed():
        return settled(execute(spec, code, stop))
