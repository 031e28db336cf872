"""The first operation that made a non-finite value, told apart from the ones that only passed it on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from precaudit.histograms.memory import flat, in_transform
from precaudit.instrument.torchfunction import tensors_in
from precaudit.tracing.records import Fault

MASKING = frozenset("masked_fill where full full_like new_full masked_scatter scatter index_fill fill".split())
"""Operations whose infinite values are what the script asked for."""
_LIMIT = 64
_READERS = "_precaudit_readers"
"""On a result: the operations that read it, filled while they run. Numbers, because a script may save its results."""


def hand_on_readers(source: torch.Tensor, results: list[torch.Tensor]) -> None:
    """A view or copy is read for the result it was made from."""
    readers = getattr(source, _READERS, None)
    for result in results if readers is not None else ():
        setattr(result, _READERS, readers)


@torch.no_grad()
def finite_amax(tensors: list[torch.Tensor]) -> float | None:
    """Largest magnitude in the tensors; None when any value is not finite."""
    held = [flat(t) for t in tensors if t.is_floating_point()]
    peaks = [float(values.abs().max()) for values in held if values is not None and values.numel()]
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
        self._slots: dict[int, Any] = {}

    def inputs(self, op: str, args: Any, kwargs: Any) -> Inputs | None:
        """None inside functorch's transforms, where no value can be looked at."""
        if in_transform():
            return None
        if op in MASKING:
            return Inputs(None, True)
        tensors = [t.detach() for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        return Inputs(finite_amax(tensors), any(bool(t.isnan().any()) for t in tensors))

    def forward(self, tensor: torch.Tensor, inputs: Inputs, step: int, slot: Any) -> None:
        values = tensor.detach()
        nans = int(values.isnan().sum())
        made_nan = nans > 0 and not inputs.nan
        if made_nan or (inputs.amax is not None and bool(values.isinf().any())):
            self._note("forward", values, inputs.amax, step, slot)

    def read(self, args: Any, kwargs: Any, slot: Any) -> None:
        """`slot` is an operation that reads these arguments."""
        self._slots[id(slot)] = slot
        for tensor in tensors_in((args, kwargs)):
            getattr(tensor, _READERS, []).append(id(slot))

    def readers(self, tensor: torch.Tensor) -> list[int]:
        """The list into which those come that read this result."""
        readers: list[int] = []
        setattr(tensor, _READERS, readers)
        return readers

    def backward(self, gradient: torch.Tensor, step: int, slot: Any, readers: Sequence[int]) -> None:
        """The gradient of `slot`'s result was sent back by the operation that read it, by the last of several."""
        if not in_transform() and not bool(gradient.isfinite().all()):
            self._note("backward", gradient, None, step, self._slots[readers[-1]] if readers else slot)

    def _note(self, phase: str, values: torch.Tensor, amax: float | None, step: int, slot: Any) -> None:
        if len(self.faults) < _LIMIT:
            bad = int((~values.isfinite()).sum())
            module = slot.module
            self.faults.append(
                Fault(step, phase, module.fqn, module.model, slot.op, bad, values.numel(), amax, slot.location)
            )
