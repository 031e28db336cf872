"""The first operation that made a non-finite value, told apart from the ones that only passed it on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from precaudit.histograms.memory import in_transform
from precaudit.instrument.torchfunction import tensors_in
from precaudit.tracing.records import Fault

_MASKING = frozenset("masked_fill where full full_like new_full masked_scatter scatter index_fill".split())
_LIMIT = 64


@torch.no_grad()
def finite_amax(tensors: list[torch.Tensor]) -> float | None:
    """Largest magnitude in the tensors; None when any value is not finite."""
    peaks = [float(t.detach().abs().max()) for t in tensors if t.is_floating_point() and t.numel()]
    return max(peaks, default=0.0) if all(map(math.isfinite, peaks)) else None


@dataclass(frozen=True)
class Inputs:
    """What went into an operation: its amax where all is finite, and whether any of it is nan."""

    amax: float | None
    nan: bool


class FaultWatch:
    """Collects producers in the order in which they ran; costs a host sync per operation, so it runs on demand.

    A producer makes nan from inputs without nan (a softmax over nothing but -inf), or inf from finite inputs.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def inputs(self, op: str, args: Any, kwargs: Any) -> Inputs | None:
        """None inside functorch's transforms, where no value can be looked at."""
        if in_transform():
            return None
        if op in _MASKING:
            return Inputs(None, True)
        tensors = [t.detach() for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        return Inputs(finite_amax(tensors), any(bool(t.isnan().any()) for t in tensors))

    def forward(self, tensor: torch.Tensor, inputs: Inputs, step: int, slot: Any) -> None:
        values = tensor.detach()
        nans = int(values.isnan().sum())
        made_nan = nans > 0 and not inputs.nan
        if made_nan or (inputs.amax is not None and bool(values.isinf().any())):
            self._note("forward", values, inputs.amax, step, slot)

    def backward(self, gradient: torch.Tensor, step: int, slot: Any) -> None:
        if not in_transform() and not bool(gradient.isfinite().all()):
            self._note("backward", gradient, None, step, slot)

    def _note(self, phase: str, values: torch.Tensor, amax: float | None, step: int, slot: Any) -> None:
        if len(self.faults) < _LIMIT:
            bad = int((~values.isfinite()).sum())
            module = slot.module
            self.faults.append(
                Fault(step, phase, module.fqn, module.model, slot.op, bad, values.numel(), amax, slot.location)
            )
