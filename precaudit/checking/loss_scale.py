"""Checks whether this data's gradients fit float16 at the plan's loss scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from precaudit.checking.models import ModelView
from precaudit.checking.records import Answer, Deployment
from precaudit.finding import finding
from precaudit.model import Finding, LossScale, OpFormat, Plan
from precaudit.planning.loss_scale import (
    K_LIMIT,
    OVERFLOW,
    Gradients,
    k_min,
    largest_k,
    lost_share,
    needed_k,
    replay,
)
from precaudit.planning.planner import gradients_of
from precaudit.tracing.records import Trace
from precaudit.words import listing, plural, share

LOST = 1e-2
"""The share of a module's gradient energy above which a loss is reported, as in the audit."""
SETTLING = 4
"""Steps that a dynamic scaler may skip on its way down without a finding."""
ANEW = "profile with this data, and pass the new plan"


@dataclass(frozen=True)
class _Seen:
    """The plan's loss scale and the gradients: statistics of each module, and log2 of the largest one by step."""

    setting: LossScale
    gradients: Gradients
    maxima: Sequence[float]

    @property
    def k(self) -> int:
        return 0 if self.setting.mode == "none" else math.floor(math.log2(self.setting.initial))

    @property
    def adapts(self) -> bool:
        return self.setting.mode == "dynamic"

    @property
    def scaled(self) -> str:
        begins = "initial " if self.adapts else ""
        return "without a loss scale" if self.setting.mode == "none" else f"at the {begins}loss scale of 2^{self.k}"

    @property
    def better(self) -> str:
        """A sentence that recommends a scale: the smallest that all modules need, or two octaves below overflow."""
        highest = largest_k(self.maxima)
        k = min(max(k_min(self.gradients) or 0, highest - 2), highest, K_LIMIT)
        return f"a loss scale of 2^{k} suits what was seen: {ANEW}"

    def vanishing(self, k: int) -> dict[str, float]:
        """The modules that lose gradients at a scale, the worst first, with the share of energy that they lose."""
        shares = {fqn: lost_share(tensors, k) for fqn, tensors in self.gradients.items()}
        return {fqn: shares[fqn] for fqn in sorted(shares, key=lambda fqn: -shares[fqn]) if shares[fqn] > LOST}


def loss_scale(trace: Trace, views: Mapping[str, ModelView], deployment: Deployment) -> Iterator[Answer]:
    """The answer on the loss scale, where gradients are float16 under the plan."""
    gradients, maxima = gradients_of(trace, _in_the_traces_names(deployment.plan, views))
    if gradients and any(map(math.isfinite, maxima)):
        seen = _Seen(deployment.plan.loss_scale, gradients, maxima)
        detail = f"gradients of {plural(len(gradients), 'module')} in float16, {seen.scaled}"
        yield Answer("loss scale", detail, tuple(_found(seen)), format=deployment.format)


def _in_the_traces_names(plan: Plan, views: Mapping[str, ModelView]) -> Plan:
    modules = {view.shown(fqn): name for view in views.values() for fqn, name in view.plan.modules.items()}
    ops = [OpFormat(view.shown(op.fqn), op.op, op.format) for view in views.values() for op in view.plan.ops]
    return replace(plan, modules=modules, ops=tuple(ops))


def _found(seen: _Seen) -> Iterator[Finding]:
    """The findings; if no single scale suits all modules, that explains the others."""
    if unserved := seen.vanishing(largest_k(seen.maxima)):
        yield _unserved(seen, unserved)
        return
    if lost := seen.vanishing(seen.k):
        yield _vanishing(seen, lost)
    yield from _overflowing(seen)


def _unserved(seen: _Seen, lost: Mapping[str, float]) -> Finding:
    fqn, need, highest = next(iter(lost)), k_min(seen.gradients), largest_k(seen.maxima)
    message = f"{_named(lost)}: gradients need a loss scale of 2^{need}, and above 2^{highest} others overflow"
    return finding("PA753", "error", message, ANEW, fqn, needed=need, highest=highest)


def _vanishing(seen: _Seen, lost: Mapping[str, float]) -> Finding:
    fqn, most = next(iter(lost.items()))
    message = f"{_named(lost)}: up to {share(most)} of the gradient energy vanishes in float16 {seen.scaled}"
    need = needed_k(seen.gradients[fqn])
    if seen.adapts and need is not None:
        steps = (need - seen.k) * seen.setting.interval
        message += f"; a scaler takes {plural(steps, 'step')} to climb to the 2^{need} that they need"
    return finding("PA751", "warning" if seen.adapts else "error", message, seen.better, fqn, flushed_energy=most)


def _overflowing(seen: _Seen) -> Iterator[Finding]:
    """Overflow at the plan's scale: a dynamic scaler needs one step per octave to come down."""
    skipped = sum(not largest + seen.k < OVERFLOW for largest in seen.maxima)
    if seen.adapts:
        skipped = replay(seen.maxima, seen.k, seen.setting.interval).skips
    if skipped > (SETTLING if seen.adapts else 0):
        top = max(seen.maxima)
        message = f"gradients reach {2**top:.3g} and overflow float16 {seen.scaled} in {plural(skipped, 'step')}"
        yield finding("PA752", "warning" if seen.adapts else "error", message, seen.better, skipped=skipped)


def _named(fqns: Mapping[str, float]) -> str:
    return listing(fqn or "the model itself" for fqn in fqns)
