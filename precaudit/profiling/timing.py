"""The measuring stage of a profile: one timed run of the script, for speed, kernels and cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from precaudit.hardware.peaks import Gpu, find_gpu, gpu_for
from precaudit.measuring.money import UNITS, cost, units
from precaudit.measuring.program import Program, arms_for, timed
from precaudit.measuring.records import FLOAT32, PLAN, Observation, Performance, Profiled
from precaudit.measuring.summary import WARM_ROUNDS, performance, steady
from precaudit.measuring.usage import compared, predictions, speed_note, usage
from precaudit.model import Environment, Finding, Op, Plan, TensorCores
from precaudit.profiling.audit import Audit, Runner
from precaudit.running.job import TIMING, RunSpec
from precaudit.tensorcores.shapes.eligibility import eligible_share

CPU_BUDGET = 1.0
REPLAYED = (
    "the script replays a CUDA graph, which keeps the precision that it was recorded in: no other precision was timed"
)


@dataclass(frozen=True)
class Measured:
    """Parts of a report; unmeasured values are None."""

    performance: Performance
    cost: Mapping[str, Any]
    tensor_cores: TensorCores
    findings: tuple[Finding, ...] = ()


def measure(audit: Audit, plan: Plan, target: Gpu, price: float | None, where: Environment, runner: Runner) -> Measured:
    """Time the script on this machine, and predict the plan's speed on the target."""
    began = time.perf_counter()
    card = find_gpu(where.device)
    found, notes = observe(audit, _program(plan, where), runner)
    seconds = time.perf_counter() - began
    on_gpu = found is not None and found.device == "cuda"
    figures = performance(found, where.device if on_gpu else None) if found else Performance()
    ops = trained_ops(audit)
    predicted = predictions(ops, audit.trace.layers, plan, target, max(1, audit.trace.audited_steps))
    own = predictions(ops, audit.trace.layers, plan, card, max(1, audit.trace.audited_steps)) if card else predicted
    figures = replace(figures, notes=notes, seconds_measuring=seconds)
    figures = compared(figures, own, figures.step_seconds if on_gpu and card else {}, card or target)
    run_steps = audit.reference.steps if audit.reference.status == "ended" else None
    steps_in = units(found.feed, run_steps) if found else dict.fromkeys(UNITS)
    device = where.device if found else None
    profiled = found.profiled if found else {}
    return Measured(
        figures,
        cost(figures, price, steps_in, device),
        usage(profiled, eligible_share(ops, plan, target), target, speed_note(figures, target, card, predicted)),
        _findings(profiled),
    )


def unmeasured(price: float | None) -> Measured:
    """Where no plan was made, none can be timed, and nothing can be said of its speed."""
    return Measured(Performance(), cost(Performance(), price, dict.fromkeys(UNITS), None), TensorCores())


def _program(plan: Plan, where: Environment) -> Program:
    """The program of the timed run; on a CPU float32 only: the time of an emulated format says nothing about
    hardware."""
    if not where.cuda:
        return Program(budget=CPU_BUDGET)
    arms = arms_for(plan, gpu_for(where).formats)
    return Program(arms, profiled=tuple(arm.name for arm in arms if arm.name in (FLOAT32, PLAN)))


def observe(audit: Audit, program: Program, runner: Runner) -> tuple[Observation | None, tuple[str, ...]]:
    """The timed run, repeated without arms that the script fails under; plus a run for the profiler alone where the
    script ended too early for it."""
    notes: list[str] = []
    while True:
        result = runner(_spec(audit, program))
        found: Observation | None = result.observed
        if found is None or result.status != "failed":
            break
        why = f"{result.error.type}: {result.error.short}" if result.error else "no reason given"
        known = found.running in _timed(found)
        what = "has fewer rounds than it might" if known else "was not timed"
        notes.append(f"{found.running} {what}: the script failed under it ({why})")
        if known:
            break
        program = _without(program, found.running)
    if found is not None and result.status == "ended" and _lacks_kernels(found, program):
        again = runner(_spec(audit, replace(program, rounds=0, energy_window=0.0))).observed
        if again is not None:
            found = replace(found, profiled={**again.profiled, **found.profiled})
    if found is not None and found.captured:
        return _without_replays(found), (*notes, REPLAYED)
    return found, (*notes, *(_skipping(found) if found else ()))


def _without_replays(found: Observation) -> Observation:
    """The observation without arms that replayed a CUDA graph captured under another arm."""
    true = found.captured == {FLOAT32}
    kept = {name: profiled for name, profiled in found.profiled.items() if true and name == FLOAT32}
    return replace(found, blocks=tuple(b for b in found.blocks if true and b.arm == FLOAT32), profiled=kept)


def _lacks_kernels(found: Observation, program: Program) -> bool:
    return found.device in program.devices and bool(set(program.profiled) - set(found.profiled))


def _skipping(found: Observation) -> list[str]:
    """Notes on arms that can't be timed because their steps are skipped."""
    skipped = dict.fromkeys(block.arm for block in found.blocks if block.skipped)
    timed = {block.arm for block in steady(found.blocks)}
    return [
        f"{arm} was not timed: its gradients overflow float16, and steps are skipped"
        for arm in skipped
        if arm not in timed
    ]


def _timed(found: Observation) -> set[str]:
    """The arms that need no further run: float32, with which others are compared, and those already timed."""
    return {FLOAT32, *(block.arm for block in found.blocks if block.round >= WARM_ROUNDS)}


def _spec(audit: Audit, program: Program) -> RunSpec:
    return RunSpec(
        audit.job,
        TIMING,
        neutralize=audit.neutralize,
        runs=partial(timed, program=program),
    )


def _without(program: Program, name: str) -> Program:
    return replace(
        program,
        arms=tuple(arm for arm in program.arms if arm.name != name),
        profiled=tuple(arm for arm in program.profiled if arm != name),
    )


def trained_ops(audit: Audit) -> list[Op]:
    """The operations in trained models."""
    trained = {layer.fqn for layer in audit.trace.trained}
    return [op for op in audit.trace.ops if op.fqn in trained]


def _findings(profiled: Mapping[str, Profiled]) -> tuple[Finding, ...]:
    """PA401: what the kernels show beyond the shapes, except for modules that the plan keeps in float32."""
    known = {"PA401", "PA403"} if PLAN in profiled else {"PA401"}
    shown = profiled.get(PLAN) or profiled.get(FLOAT32)
    return tuple(finding for finding in shown.findings if finding.rule not in known) if shown else ()
