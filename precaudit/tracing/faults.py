"""The first operation that produced a non-finite value, as opposed to those that propagated it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from precaudit.histograms.memory import flat, in_transform
from precaudit.instrument.torch_function import Call, floats_in
from precaudit.tracing.records import Fault

MASKING = frozenset(
    "masked_fill where full full_like new_full masked_scatter scatter index_fill fill pad __setitem__".split()
)
"""Operations whose infinite values the script asked for."""
_LIMIT = 64
_READERS = "_precaudit_readers"
"""Attribute of a result: ids of the operations that read it. Plain integers, as a script may pickle its results."""


def hand_on_readers(source: torch.Tensor, results: list[torch.Tensor]) -> None:
    """Reading a view or copy counts as reading the tensor it was made from."""
    readers = getattr(source, _READERS, None)
    for result in results if readers is not None else ():
        setattr(result, _READERS, readers)


@torch.no_grad()
def finite_amax(tensors: list[torch.Tensor]) -> float | None:
    """The largest magnitude in the floating-point tensors; None where any value is not finite."""
    held = [flat(t) for t in tensors if t.is_floating_point()]
    peaks = [float(values.abs().max()) for values in held if values is not None and values.numel()]
    return max(peaks, default=0.0) if all(map(math.isfinite, peaks)) else None


@dataclass(frozen=True)
class Inputs:
    """The inputs of an operation: their amax (None unless all are finite), and whether any is nan."""

    amax: float | None
    nan: bool


class FaultWatch:
    """Collects operations that produce non-finite values, in order of execution.

    A producer makes nan from inputs without nan (a softmax over nothing but -inf), or inf from finite inputs. Each
    operation costs a host synchronization, so this runs on demand only.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._slots: dict[int, Any] = {}

    def inputs(self, call: Call) -> Inputs | None:
        """Describe the inputs; None inside functorch transforms, where values can't be read."""
        if in_transform():
            return None
        if call.op in MASKING:
            return Inputs(None, True)
        tensors = [t.detach() for t in floats_in(call)]
        return Inputs(finite_amax(tensors), any(bool(t.isnan().any()) for t in tensors))

    def forward(self, tensor: torch.Tensor, inputs: Inputs, step: int, slot: Any) -> None:
        values = tensor.detach()
        nans = int(values.isnan().sum())
        made_nan = nans > 0 and not inputs.nan
        if made_nan or (inputs.amax is not None and bool(values.isinf().any())):
            self._note("forward", values, inputs.amax, step, slot)

    def read(self, call: Call, slot: Any) -> None:
        """Record that the operation `slot` reads the arguments of a call."""
        self._slots[id(slot)] = slot
        for tensor in call.given:
            getattr(tensor, _READERS, []).append(id(slot))

    def readers(self, tensor: torch.Tensor) -> list[int]:
        """A new list, to which the operations that read this result will be added."""
        readers: list[int] = []
        setattr(tensor, _READERS, readers)
        return readers

    def backward(self, gradient: torch.Tensor, step: int, slot: Any, readers: Sequence[int]) -> None:
        """Check the gradient of `slot`'s result, which came from the (last) operation that read it, or from outside."""
        if in_transform() or bool(gradient.isfinite().all()):
            return
        phase, source = ("backward", self._slots[readers[-1]]) if readers else ("given", slot)
        self._note(phase, gradient, None, step, source)

    def _note(self, phase: str, values: torch.Tensor, amax: float | None, step: int, slot: Any) -> None:
        if len(self.faults) < _LIMIT:
            bad = int((~values.isfinite()).sum())
            module = slot.module
            self.faults.append(Fault(step, phase, module.fqn, module.model, slot.op, bad, amax, slot.location))
