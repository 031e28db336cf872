"""The float32 reference run, whatever precision a script uses itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from precaudit.running.job import ALONE, INTERNAL, RunResult, RunSpec
from precaudit.running.uninstrumented import uninstrumented

_PAST = 3
"""How many steps past a failure show that the script itself does not have it."""
_TRIES = 2


@dataclass(frozen=True)
class Reference:
    """`run` is the float32 run of `spec`; `first` had the script's own casts active, if it is another run."""

    spec: RunSpec
    run: RunResult
    first: RunResult


def in_float32(spec: RunSpec, runner: Callable[[RunSpec], RunResult]) -> Reference:
    """Run with the script's autocast disabled; again without its `assert`s if these fail, and without its own casts if
    these create half tensors or cause a failure."""
    first = runner(spec)
    if _asserts_its_precision(first):
        spec = replace(spec, job=replace(spec.job, asserts=False))
        first = runner(spec)
    if not (_casts_by_itself(first) if first.finished else _may_fail_of_casts(first)):
        run = _blamed(first, spec, runner)
        return Reference(spec, run, run)
    spec = replace(spec, neutralize=True)
    return Reference(spec, _blamed(runner(spec), spec, runner), first)


def _blamed(run: RunResult, spec: RunSpec, runner: Callable[[RunSpec], RunResult]) -> RunResult:
    """The failure attributed to precaudit if the script alone gets past it, unless it is random (a download): then a
    repeated run gets past it as well. Both are tried twice, as a random failure may recur, even at the same step if
    that is the first."""
    error = run.error
    if run.status != "failed" or error is None or run.is_ours or error.is_lack_of_memory:
        return run
    job = replace(spec.job, steps=run.steps + _PAST)
    alone = RunSpec(job, ALONE, spec.seed, threads=spec.threads, runs=uninstrumented)
    for _ in range(_TRIES):
        if not runner(alone).finished:
            return run
        again = runner(spec)
        if again.error is None or (again.error.type, again.steps) != (error.type, run.steps):
            return again
    why = f"{error.type}: {error.short}. Without precaudit the script does not fail there: {_fault(run)}"
    return replace(run, error=replace(error, type=INTERNAL, message=why, traceback=f"{error.traceback}\n{why}"))


def _fault(run: RunResult) -> str:
    if run.own_precision.autocast is None:
        return "precaudit is at fault; please report it"
    return (
        "it may need its own autocast, which is off in the float32 run: make it train in float32 too, or, if that is "
        "not the reason, report this as a fault of precaudit"
    )


def _asserts_its_precision(run: RunResult) -> bool:
    """Whether the script failed by an `assert`, which may check the dtypes of its own autocast."""
    return run.error is not None and run.error.type == "AssertionError" and run.own_precision.autocast is not None


def _casts_by_itself(run: RunResult) -> bool:
    """Whether the script casts to half by itself: half tensors occur although its autocast is disabled."""
    return bool(run.own_precision.casts) or (run.trace is not None and bool(run.trace.low_dtypes))


def _may_fail_of_casts(run: RunResult) -> bool:
    """Whether the failure may come from the script's own casts: an id changed by a cast may be out of range, and inputs
    cast for the script's own autocast don't match float32 weights."""
    return run.status == "failed" and bool(run.own_precision.casts)
