"""The first operation that made a non-finite value, told apart from the ones that only passed it on."""

from __future__ import annotations

from typing import Any

import torch

from precaudit.instrument.torchfunction import tensors_in
from precaudit.tracing.records import Fault

_MASKING = frozenset("masked_fill where full full_like new_full masked_scatter scatter index_fill".split())
_LIMIT = 64


@torch.no_grad()
def finite_amax(tensors: list[torch.Tensor]) -> float | None:
    """Largest magnitude in the tensors; None when any is not finite."""
    amax = 0.0
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            amax = max(amax, float(tensor.detach().abs().max()))
            if not amax < float("inf"):
                return None
    return amax


class FaultWatch:
    """Collects producers in the order in which they ran; costs a host sync per operation, so it runs on demand."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def inputs(self, op: str, args: Any, kwargs: Any) -> float | None:
        return None if op in _MASKING else finite_amax(tensors_in((args, kwargs)))

    def check(self, tensor: torch.Tensor, amax: float | None, phase: str, step: int, slot: Any) -> None:
        if len(self.faults) >= _LIMIT or (phase == "forward" and amax is None):
            return
        bad = int((~tensor.detach().isfinite()).sum())
        if bad:
            self.faults.append(
                Fault(
                    step, phase, slot.module.fqn, slot.module.model, slot.op, bad, tensor.numel(), amax, slot.location
                )
            )
