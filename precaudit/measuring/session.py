"""A timed run of a person's code, in this process: a program in, a RunResult with its Observation out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from precaudit.execution.products import own_settings_ignored
from precaudit.instrument.events import TrainingEvents
from precaudit.measuring.conductor import Conductor
from precaudit.measuring.program import Program
from precaudit.ownprecision.baseline import Baseline, eager_only, float32_only
from precaudit.running.job import RunResult, RunSpec
from precaudit.running.monitor import Stop
from precaudit.running.seeds import controlled_seeds
from precaudit.running.worker import Leave, execute
from precaudit.tensorcores.counters import Pipes
from precaudit.tensorcores.energy import Meter
from precaudit.tensorcores.nvml import handle_of, library, session


def timed_run(spec: RunSpec, code: Callable[[], None], leave: Leave | None = None, *, program: Program) -> RunResult:
    """Run `code` as the program says. Nothing listens but for the ends of steps, and every patch is gone afterwards."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    events, baseline, began = TrainingEvents(), Baseline(), time.perf_counter()

    def settled(result: RunResult) -> RunResult:
        return replace(result, seconds=time.perf_counter() - began, observed=conductor.observation())

    def stopped() -> None:
        if leave is not None:
            leave(settled(RunResult(spec.label, spec.seed, "stopped")))

    stop = Stop(stopped)
    with ExitStack() as stack:
        conductor = Conductor(program, events, *stack.enter_context(own_counters()), stop)
        stack.enter_context(controlled_seeds(spec.seed))
        stack.enter_context(eager_only())
        stack.enter_context(own_settings_ignored(baseline.settings))
        stack.enter_context(baseline.neutralized())
        if spec.neutralize:
            stack.enter_context(float32_only())
        stack.enter_context(events.installed())
        stack.enter_context(conductor.installed())
        result = execute(spec, code, stop)
    return settled(result)


@contextmanager
def own_counters() -> Iterator[tuple[Meter, Pipes]]:
    """The energy meter and the counters of torch's current GPU; such that count nothing where there is none."""
    if not torch.cuda.is_available():
        yield Meter(), Pipes()
        return
    nvml = library()
    with session(nvml) as problem:
        if problem:
            yield Meter(problem=problem), Pipes(problem=problem)
            return
        try:
            handle = handle_of(nvml, str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
        except nvml.NVMLError as error:
            yield Meter(problem=str(error)), Pipes(problem=str(error))
            return
        yield Meter(nvml, handle), Pipes(nvml, handle)
