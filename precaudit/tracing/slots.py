"""What the tracer keeps while a script runs: one slot an operation, a layer and a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from precaudit.histograms import Accumulator
from precaudit.instrument.names import ModuleName
from precaudit.model import Location, TensorStats
from precaudit.tracing.shadow import Energies


class Gauge:
    """Statistics of one tensor role: a device-side accumulator, folded into host statistics when asked."""

    __slots__ = ("_pending", "_sums")

    def __init__(self) -> None:
        self._pending: Accumulator | None = None
        self._sums = TensorStats()

    def add(self, tensor: torch.Tensor, log2_scale: int = 0) -> int | None:
        if self._pending is None:
            self._pending = Accumulator()
        return self._pending.add(tensor, log2_scale)

    def add_difference(self, new: torch.Tensor, old: torch.Tensor) -> None:
        if self._pending is None:
            self._pending = Accumulator()
        self._pending.add_difference(new, old)

    def fold(self) -> TensorStats:
        """Moves what was added since the last fold into the sums; returns just that part."""
        fresh = self._pending.stats() if self._pending is not None else TensorStats()
        self._pending = None
        self._sums = self._sums.merge(fresh)
        return fresh

    def stats(self) -> TensorStats:
        self.fold()
        return self._sums


@dataclass(eq=False)
class OpSlot:
    """The n-th call of an operation in a module's forward, over all forwards.

    `half` tells whether autocast would store the result in half precision; `constants` are the smallest
    and largest magnitudes among its non-zero scalar arguments.
    """

    module: ModuleName
    op: str
    category: str
    location: Location | None
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    half: bool
    constants: tuple[float, float] | None
    calls: int = 0
    activation: Gauge = field(default_factory=Gauge)
    gradient: Gauge = field(default_factory=Gauge)
    input_amax: float | None = None
    integer_input: float | None = None
    local: dict[str, Energies] = field(default_factory=dict)

    @property
    def local_error(self) -> dict[str, float]:
        """Relative rms error of this call alone, by format."""
        return {name: energies.relative for name, energies in self.local.items()}


@dataclass(eq=False)
class LayerSlot:
    """A module's own record; its activations are an op's where the op's result is what the module returns."""

    module: ModuleName
    type: str
    leaf: bool
    calls: int = 0
    activation: Gauge = field(default_factory=Gauge)
    gradient: Gauge = field(default_factory=Gauge)
    shared_with: dict[int, OpSlot] = field(default_factory=dict)


@dataclass(eq=False)
class ParameterSlot:
    """A parameter under the first name it was met by; `state` has a gauge for every optimizer-state tensor."""

    module: ModuleName
    name: str
    numel: int
    dtype: str
    weight: Gauge = field(default_factory=Gauge)
    gradient: Gauge = field(default_factory=Gauge)
    update: Gauge = field(default_factory=Gauge)
    state: dict[str, Gauge] = field(default_factory=dict)
    state_dtypes: dict[str, str] = field(default_factory=dict)
    absorbed: dict[str, float] = field(default_factory=dict)
    hooked: bool = False


def scalar_range(args: Any, kwargs: Mapping[str, Any]) -> tuple[float, float] | None:
    """Smallest and largest magnitude among the non-zero floating-point scalars of a call."""
    values = [abs(v) for v in (*args, *kwargs.values()) if isinstance(v, float) and v]
    return (min(values), max(values)) if values else None
