"""The listeners of one run and the modes and patches that are active during it, as its RunSpec asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import torch

from precaudit.execution.kernels import HalfKernels
from precaudit.execution.loss_scaling import scaler_for
from precaudit.execution.native import backward_products, precision_for
from precaudit.execution.perturbation import Perturbation, jitter, rounded_to
from precaudit.execution.products import own_settings_ignored, tf32
from precaudit.instrument.eager import eager_only
from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.functions import OwnBackward
from precaudit.instrument.names import ModuleNames, has_parameters
from precaudit.instrument.patches import set_to
from precaudit.instrument.scopes import ModuleScopes, ScopeListener
from precaudit.model import Plan
from precaudit.ownprecision.baseline import Baseline
from precaudit.ownprecision.by_hand import ScaledByHand
from precaudit.ownprecision.changes import GradientChanges
from precaudit.ownprecision.float32 import casts_recorded, float32_only, in_both_passes
from precaudit.ownprecision.grad_scaler import OwnScaler
from precaudit.ownprecision.regions import OwnRegions
from precaudit.ownprecision.scaled_gradients import ScaledGradients
from precaudit.ownprecision.stale_casts import StaleCasts
from precaudit.ownprecision.watch import OwnLowPrecision
from precaudit.running.end_state import FirstValues, LastCalls, LostOutputs, end_state
from precaudit.running.evaluation import PlanComparison
from precaudit.running.job import EndState, RunSpec, ScriptError
from precaudit.running.monitor import Monitor, Stop
from precaudit.running.probes import GradientProbe
from precaudit.running.seeds import controlled_seeds, repeatable_algorithms
from precaudit.tracing.ops import caller_location
from precaudit.tracing.tracer import TraceOptions, Tracer

_SHORT = 30.0
"""Seconds for calling the models again after a run, however short it was."""


class Optimizers(TrainingListener):
    """The optimizers that have stepped, by id."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def step_ended(self, optimizer: Any) -> None:
        if optimizer is not None:
            self.seen[id(optimizer)] = optimizer

    def release(self) -> None:
        """Release those that the script no longer holds, with their states and the models that they trained."""
        weak = [ref(optimizer) for optimizer in self.seen.values()]
        self.seen.clear()
        self.seen = {id(held): held for optimizer in weak if (held := optimizer()) is not None}


class Session:
    """All listeners of one run."""

    def __init__(self, spec: RunSpec, progress: Callable[[int, float], None], stop: Stop) -> None:
        """The order of listeners matters: precision is applied inside tracing, and the monitor comes last."""
        self.names, self.events = ModuleNames(), TrainingEvents()
        self.scopes = scopes = ModuleScopes(self.names)
        self.baseline = baseline = Baseline(lambda: scopes.current is not None)
        in_disabled_region, own = baseline.in_disabled_region, baseline.own
        audited = spec.plan is None and bool(spec.audited)
        self.functions = OwnBackward(scopes, baseline.disabled_region, bool(spec.plan or spec.probe_compare))
        self.scaler = scaler_for(spec.plan)
        self.tracer = Tracer(scopes, _trace_options(spec, baseline), in_disabled_region) if _is_traced(spec) else None
        probing = spec, self.names, scopes, self.events, in_disabled_region
        self.probe = probe = GradientProbe(*probing) if spec.probe_dir else None
        self.observer = spec.observer(scopes, in_disabled_region) if spec.observer else None
        watched = spec.precision in ("own-casts", "as-written")
        self.own_low = OwnLowPrecision(self.names, own, lambda: scopes.current) if watched else None
        self.scaled = ScaledGradients(self.names, own) if audited else None
        self.by_hand = ScaledByHand(self.names, own) if audited else None
        self.changes = GradientChanges(self.names, own) if audited or spec.precision == "as-written" else None
        stale = StaleCasts(baseline) if audited else None
        self.monitor = monitor = Monitor(self.events, spec.job.steps, progress, stop, spec.patience)
        self.optimizers, self.first_values, self.last_calls = Optimizers(), FirstValues(), LastCalls()
        self.names.before_naming = self._release
        self.lost_outputs = LostOutputs(lambda: monitor.steps)
        ends = self.first_values, self.last_calls, self.lost_outputs
        roundings = _roundings(spec, scopes, in_disabled_region)
        scopes.listeners = _wanted(self.events, *roundings, probe, self.tracer, *ends, self.observer, stale, monitor)
        watching = self.own_low, self.scaled, self.by_hand, self.changes, stale
        self.events.listeners = _wanted(self.scaler, self.tracer, probe, *watching, self.optimizers, monitor)

    def _release(self) -> None:
        self.optimizers.release()
        self.last_calls.release()

    def end_state(self, spec: RunSpec, seconds: float) -> EndState:
        """Calling the models again may take `seconds`, but at least half a minute is allowed."""
        calls = self.last_calls.calls
        with torch.set_grad_enabled(spec.watch_from is not None):  # the tracer ignores calls without gradients
            return end_state(
                self.scopes,
                self.optimizers.seen.values(),
                calls,
                self.first_values,
                self.lost_outputs.first,
                self.comparison(spec, max(seconds, _SHORT) / max(1, len(calls))),
            )

    def blamed(self, error: ScriptError) -> ScriptError:
        """The error with the module or function that raised it. Call before `end_state`, which enters modules again."""
        where, function = self.functions.running or (self.scopes.raised_in, None)
        return replace(error, raised_in=where, backward_of=function)

    def comparison(self, spec: RunSpec, seconds: float) -> PlanComparison | None:
        """What the evaluation of models under the spec's plan needs; None where no low-precision plan is tried."""
        if spec.plan is None or spec.watch_from is not None or not spec.plan.is_low_precision:
            return None
        return PlanComparison(spec.plan, partial(self._under, spec), seconds)

    def _under(self, spec: RunSpec, plan: Plan | None) -> AbstractContextManager[None]:
        """Run models under `plan` (None: float32) without any other listener."""
        other = replace(spec, plan=plan, jitter=False, perturbed=None)
        roundings = _roundings(other, self.scopes, self.baseline.in_disabled_region)
        return set_to(self.scopes, "listeners", list(roundings))

    def compiles(self) -> None:
        """Records that a module is compiled by TorchScript before the first step; later ones are exports."""
        if not self.monitor.steps:
            self.baseline.own.scripted = self.baseline.own.scripted or caller_location()


def _wanted(*listeners: Any) -> list[Any]:
    return [listener for listener in listeners if listener is not None]


def _is_traced(spec: RunSpec) -> bool:
    return bool(spec.audited) or spec.watch_from is not None


def _roundings(spec: RunSpec, scopes: ModuleScopes, in_disabled_region: Callable[[], bool]) -> Iterator[ScopeListener]:
    """The listeners that round: the plan's execution, and perturbations of the initial weights."""
    if spec.plan is not None:
        yield precision_for(spec.execution)(spec.plan, scopes, has_parameters, in_disabled_region)
    if spec.jitter:
        yield Perturbation(jitter(spec.seed))
    if spec.perturbed:
        yield Perturbation(rounded_to(spec.perturbed))


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


@contextmanager
def installed(session: Session, spec: RunSpec) -> Iterator[None]:
    """All hooks, patches and modes of a run, which are removed when the block ends."""
    with ExitStack() as stack:
        stack.enter_context(controlled_seeds(spec.seed))
        stack.enter_context(eager_only(session.compiles))
        stack.enter_context(repeatable_algorithms())
        stack.enter_context(_precision(session.baseline, spec))
        if session.own_low is not None:
            stack.enter_context(in_both_passes(session.own_low))
        for watching in (session.scaled, session.by_hand, session.changes):
            if watching is not None:
                stack.enter_context(watching.installed())
        stack.enter_context(session.scopes.installed())
        stack.enter_context(session.functions.installed())
        stack.enter_context(session.events.installed())
        for traced in (session.tracer, session.scaler):
            if traced is not None:
                stack.callback(traced.remove)
        yield


@contextmanager
def _precision(baseline: Baseline, spec: RunSpec) -> Iterator[None]:
    """The script's own precision, or in its place the plan's or float32."""
    with ExitStack() as stack:
        if spec.precision != "as-written":
            native_plan = spec.plan if spec.execution == "native" else None
            stack.enter_context(backward_products(native_plan) if native_plan else tf32(False))
            stack.enter_context(own_settings_ignored())
            stack.enter_context(baseline.neutralized())
            if spec.precision == "own-casts" and spec.execution == "emulated":
                stack.enter_context(in_both_passes(HalfKernels()))
        else:
            stack.enter_context(OwnScaler(baseline.own).scaled_in_gradients())
            if spec.execution == "emulated":
                stack.enter_context(OwnRegions().emulated())
        if spec.neutralize:
            stack.enter_context(float32_only())
        elif spec.audited:
            stack.enter_context(casts_recorded(baseline.own))
        yield
