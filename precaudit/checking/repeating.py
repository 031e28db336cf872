"""Repeating a model's calls in eval mode: in float32, under a plan, and with hard inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from precaudit.checking import inputs
from precaudit.checking.entries import paired
from precaudit.checking.inputs import Call
from precaudit.checking.matching import add_batch, faulty, lost, named_outputs
from precaudit.checking.records import LARGE_EXPONENT, Deployment, HardInput, HardKind, OutputMatch
from precaudit.execution.native import precision_for
from precaudit.formats import FORMATS
from precaudit.instrument.patches import set_to
from precaudit.instrument.scopes import ModuleScopes, ScopeListener
from precaudit.model import Execution, Plan
from precaudit.running.modes import eval_mode

_SEED = 0
_NOTHING: Mapping[HardKind, str] = {
    "large": "it has no floating-point input",
    "denormals": "it has no floating-point input",
    "batch of one": "its batches have one sample already",
}
UNSEEN = "it returns no floating-point tensor that can be found"
Outputs = dict[str, torch.Tensor]
Run = Callable[[Call], Outputs]


@dataclass
class Calls:
    """The last calls of one outermost module, and the longest one."""

    module: nn.Module
    model: str
    last: deque[Call]
    longest: Call | None = None

    def add(self, call: Call) -> None:
        self.last.append(call)
        if self.longest is None or inputs.length(call) > inputs.length(self.longest):
            self.longest = call


@dataclass
class Seen:
    """The results of repeated calls; `unanswered` says why a model's outputs could not be compared."""

    outputs: dict[tuple[str, str, str], OutputMatch] = field(default_factory=dict)
    hard_inputs: list[HardInput] = field(default_factory=list)
    raised: list[tuple[str, str, str]] = field(default_factory=list)
    unanswered: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Repeater:
    """Calls modules with the plan's execution as the only scope listener, and always with the same random numbers."""

    scopes: ModuleScopes
    in_disabled_region: Callable[[], bool]
    execution: Execution

    def float32(self, module: nn.Module) -> Run:
        return lambda call: self._run(module, call, [])

    def under(self, module: nn.Module, plan: Plan) -> Run:
        precision, region = precision_for(self.execution), self.in_disabled_region
        return lambda call: self._run(module, call, [precision(plan, self.scopes, in_disabled_region=region)])

    def _run(self, module: nn.Module, call: Call, precision: list[ScopeListener]) -> Outputs:
        args, kwargs = inputs.copied(call)
        alone, random = set_to(self.scopes, "listeners", precision), torch.random.fork_rng(_cuda_devices())
        with alone, eval_mode(module), torch.no_grad(), random:
            torch.manual_seed(_SEED)
            return dict(named_outputs(module(*args, **kwargs)))


def compare(seen: Seen, key: str, calls: Calls, reference: Run, planned: Run, deployment: Deployment) -> None:
    """Compare every kept batch under the plan with float32; an exception that float32 doesn't raise is the plan's."""
    for call in calls.last:
        wanted = reference(call)
        if not wanted:
            seen.unanswered[key] = UNSEEN
        try:
            outputs = planned(call)
        except Exception as error:
            seen.raised.append((deployment.format, key, said(error)))
            return
        pairs = paired(outputs, wanted, call)
        for name in wanted:
            place = (deployment.format, key, name)
            match = seen.outputs.get(place) or OutputMatch(*place)
            compared = name in pairs and add_batch(match, pairs[name], call, deployment.tolerance)
            seen.outputs[place] = compared or replace(match, missing=match.missing + 1)


def hard_calls(calls: Calls, plan: Plan) -> Iterator[tuple[HardKind, Call | None]]:
    """A call for each kind of hard input, derived from the last real one; None where that is not possible."""
    real = calls.last[-1]
    floats = inputs.has_floats(real)
    yield "zeros", inputs.zeros(real)
    yield "large", inputs.scaled(real, LARGE_EXPONENT) if floats else None
    yield "denormals", inputs.denormals(real, _smallest_normal(plan)) if floats else None
    yield "batch of one", inputs.first_sample(real)
    yield "longest", calls.longest


def _smallest_normal(plan: Plan) -> float:
    """The smallest normal number of the plan's format with the shortest range."""
    return max(FORMATS[name].smallest_normal for name in (plan.default, *plan.modules.values()))


def try_hard(hard: HardInput, call: Call | None, reference: Run, planned: Run) -> HardInput:
    """`hard` with its result."""
    if call is None:
        return replace(hard, skipped=_NOTHING[hard.kind])
    try:
        wanted = reference(call)
    except Exception as error:
        return replace(hard, skipped=f"float32 raises {said(error)}")
    if not wanted:
        return replace(hard, skipped=UNSEEN)
    try:
        outputs = planned(call)
    except Exception as error:
        return replace(hard, raised=said(error))
    return replace(hard, nonfinite=_lost(outputs, wanted), reference_nonfinite=sum(faulty(x) for x in wanted.values()))


def safe_exponent(real: Call, reference: Run, planned: Run) -> int:
    """The largest exponent below `LARGE_EXPONENT` for scaled inputs at which the plan's outputs stay finite where
    float32's do; 0 if none."""
    for exponent in range(LARGE_EXPONENT - 1, 0, -1):
        call = inputs.scaled(real, exponent)
        if not _lost(planned(call), reference(call)):
            return exponent
    return 0


def _lost(outputs: Outputs, wanted: Outputs) -> int:
    return sum(lost(outputs[name], wanted[name]) for name in wanted.keys() & outputs.keys())


def _cuda_devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
