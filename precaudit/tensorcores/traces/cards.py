"""The GPU of a trace's kernels: from the trace, the target's name, or the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from precaudit.formats import ALIASES
from precaudit.hardware.generations import RANK, generation_of, has_tensor_cores, newest
from precaudit.hardware.peaks import Gpu, find_gpu
from precaudit.tensorcores.traces.kernel_rules import NOT_NVIDIA, classify
from precaudit.tensorcores.traces.trace import Device, ProfilerTrace


@dataclass(frozen=True)
class Card:
    """A GPU of the trace, as far as it is known; `generation` is None where neither the trace nor a name tells.
    `unused` is the target that was named for a trace that names another GPU itself."""

    name: str | None
    capability: tuple[int, int] | None
    nvidia: bool
    gpu: Gpu | None
    unused: str | None = None

    @cached_property
    def tensor_cores(self) -> bool:
        """Whether the GPU has any, as far as is known."""
        return self.nvidia and has_tensor_cores(self.name or "", self.capability)

    @cached_property
    def generation(self) -> str | None:
        return generation_of(self.capability) if self.tensor_cores else None

    def peak(self, operands: str) -> float | None:
        """TFLOP/s of products with these operands, as kernels call them, on its Tensor Cores; None where not listed."""
        return self.gpu.peak(ALIASES.get(operands, operands)) if self.gpu else None


def cards_of(trace: ProfilerTrace, target: str | None) -> tuple[Card, ...]:
    """A card for each of the trace's devices; `target` names those that the trace doesn't."""
    return tuple(_identify(device, trace, find_gpu(target) if target else None) for device in trace.devices)


def _identify(device: Device | None, trace: ProfilerTrace, target: Gpu | None) -> Card:
    if device is not None:
        own = find_gpu(device.name)
        capability = device.capability or (own.capability if own else _newest_capability(trace))
        unused = target.name if target is not None and target is not own else None
        return Card(device.name, capability, device.nvidia, own, unused)
    if target is not None:
        return Card(target.name, target.capability, target.nvidia, target)
    if any(classify(name, None).rule == NOT_NVIDIA.rule for name in _kernel_names(trace)):
        return Card("unnamed AMD GPU", None, False, None)
    return Card(None, _newest_capability(trace), True, None)


def _kernel_names(trace: ProfilerTrace) -> set[str]:
    return {trace.names[i] for i in np.unique(trace.kernels.name)}


def _newest_capability(trace: ProfilerTrace) -> tuple[int, int] | None:
    """The capability of the newest generation among the kernels: no GPU runs kernels newer than itself."""
    capabilities = ((7, 0), (7, 5), (8, 0), (9, 0), (10, 0))
    latest = newest(classify(name, None).generation for name in _kernel_names(trace))
    return next((c for c in capabilities if latest and RANK[generation_of(c) or ""] == RANK[latest]), None)
