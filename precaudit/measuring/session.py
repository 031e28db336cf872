"""A timed run of the user's code in this process: a program in, a RunResult with its Observation out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from precaudit.execution.products import own_settings_ignored
from precaudit.instrument.eager import eager_only
from precaudit.instrument.events import TrainingEvents
from precaudit.measuring.interleaving import ArmScheduler
from precaudit.measuring.program import Program
from precaudit.ownprecision.baseline import Baseline
from precaudit.ownprecision.float32 import float32_only
from precaudit.running.job import RunResult, RunSpec
from precaudit.running.seeds import controlled_seeds
from precaudit.running.worker import Leave, execute, stop_of


def timed_run(spec: RunSpec, code: Callable[[], None], leave: Leave | None = None, *, program: Program) -> RunResult:
    """Run `code` as the program says. The only hooks are those on the ends of steps, and every patch is removed
    afterwards."""
    events, baseline, began = TrainingEvents(), Baseline(), time.perf_counter()

    def settled(result: RunResult) -> RunResult:
        return replace(result, seconds=time.perf_counter() - began, observed=scheduler.observation())

    stop = stop_of(spec, leave, settled)
    scheduler = ArmScheduler(program, events, stop)
    with ExitStack() as stack:
        stack.enter_context(controlled_seeds(spec.seed))
        stack.enter_context(eager_only())
        stack.enter_context(own_settings_ignored())
        stack.enter_context(baseline.neutralized())
        if spec.neutralize:
            stack.enter_context(float32_only())
        stack.enter_context(events.installed())
        stack.enter_context(scheduler.installed())
        result = execute(spec, code, stop)
    return settled(result)
