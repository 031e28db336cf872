"""The float32 run that everything is compared with, whatever precision a script has of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from precaudit.running.job import INTERNAL, RunResult, RunSpec
from precaudit.running.unwatched import unwatched

_PAST = 3
"""Steps beyond a failure that say a script doesn't have it."""
_TRIES = 2


@dataclass(frozen=True)
class Reference:
    """`run` is float32 as `spec` says; in `first` the script's own casts were in force, if `run` is another one."""

    spec: RunSpec
    run: RunResult
    first: RunResult


def in_float32(spec: RunSpec, runner: Callable[[RunSpec], RunResult]) -> Reference:
    """With the script's autocast off; again without its `assert`s where these fail, and without its own casts where it
    makes half tensors by them, or fails for them."""
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
    """A failure that the script by itself gets past is precaudit's, unless it comes by chance, as a download's does:
    then another run goes on, or fails as it may. Both are tried twice: chance may fail once more, and at the same step,
    as where it strikes before the first."""
    error = run.error
    if run.status != "failed" or error is None or run.is_ours or error.is_lack_of_memory:
        return run
    job = replace(spec.job, steps=run.steps + _PAST)
    alone = RunSpec(job, "alone", spec.seed, threads=spec.threads, runs=unwatched)
    for _ in range(_TRIES):
        if not runner(alone).finished:
            return run
        again = runner(spec)
        if again.error is None or (again.error.type, again.steps) != (error.type, run.steps):
            return again
    why = f"{error.type}: {error.message}. Without precaudit the script does not fail there: {_fault(run)}"
    return replace(run, error=replace(error, type=INTERNAL, message=why, traceback=f"{error.traceback}\n{why}"))


def _fault(run: RunResult) -> str:
    if "autocast" not in run.baseline:
        return "precaudit is at fault; please report it"
    return (
        "it may need its own autocast, which is off in the float32 run: make it train in float32 too, or, if that is "
        "not the reason, report this as a fault of precaudit"
    )


def _asserts_its_precision(run: RunResult) -> bool:
    """A script that checks the dtypes of its own autocast by `assert` can't run in float32 as it stands."""
    return run.error is not None and run.error.type == "AssertionError" and "autocast" in run.baseline


def _casts_by_itself(run: RunResult) -> bool:
    """Whether the script made half tensors though its autocast was off."""
    return "casts" in run.baseline or (run.trace is not None and bool(run.trace.low_dtypes))


def _may_fail_of_casts(run: RunResult) -> bool:
    """An id that a cast makes another one may be no row of a table; and a script that casts what it feeds into its own
    autocast can't run without that, unless its casts are off too."""
    return run.status == "failed" and "casts" in run.baseline
