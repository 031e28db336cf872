"""The tracer's mutable state: one slot for each operation, layer and parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from precaudit.formats import EXTREME
from precaudit.histograms import Accumulator, collect
from precaudit.instrument.names import ModuleName
from precaudit.instrument.torch_function import dtype_name
from precaudit.model import Location, TensorStats
from precaudit.tracing.shadow import Energies


class Gauge:
    """Statistics of one tensor role: an accumulator on the device (`pending`), which `fold` merges into statistics on
    the host."""

    __slots__ = ("_sums", "add", "pending")

    def __init__(self) -> None:
        self._sums = TensorStats()
        self._renew()

    def _renew(self) -> None:
        self.pending = Accumulator()
        self.add = self.pending.add

    def stats(self) -> TensorStats:
        fold([self])
        return self._sums


def fold(gauges: Iterable[Gauge]) -> None:
    """Merge pending values into the host's statistics, with one copy from each device."""
    fresh = [gauge for gauge in gauges if gauge.pending.parts()]
    for gauge, stats in zip(fresh, collect([gauge.pending for gauge in fresh]), strict=True):
        gauge._sums = gauge._sums.merge(stats)
        gauge._renew()


@dataclass(eq=False)
class OpSlot:
    """The n-th call of an operation in a module's forward, over all forward passes.

    - `half`: whether autocast would store the result in half precision; `autocast`: the dtype of the script's region.
    - `constants`: the smallest and largest magnitude of its non-zero scalar arguments, except extreme ones that depend
      on a dtype that the script read; `follows_dtype`: it has such an argument, or is given what was made with one.
    - `in_place`: whether it writes over a tensor.
    - `flops`: those of one call of a product, where torch counts them.
    """

    module: ModuleName
    op: str
    category: str
    location: Location | None
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    half: bool
    autocast: str | None = None
    flops: float | None = None
    constants: tuple[float, float] | None = None
    follows_dtype: bool = False
    in_place: bool = False
    calls: int = 0
    activation: Gauge = field(default_factory=Gauge)
    gradient: Gauge = field(default_factory=Gauge)
    input_amax: float | None = None
    integer_input: float | None = None
    local: dict[str, Energies] = field(default_factory=dict)

    def take(self, values: Sequence[float], follow: bool) -> None:
        """Record the scalar arguments of one call; with `follow`, extreme ones are taken to depend on the dtype."""
        fixed = [value for value in values if not follow or value < EXTREME]
        self.follows_dtype |= len(fixed) < len(values)
        if fixed:
            known = self.constants or (fixed[0], fixed[0])
            self.constants = min(known[0], *fixed), max(known[1], *fixed)

    @property
    def local_error(self) -> dict[str, float]:
        """Relative rms error of this call alone, by format."""
        return {name: energies.relative for name, energies in self.local.items()}


@dataclass(eq=False)
class LayerSlot:
    """A module's record. Where it returns the result of an operation, it shares that operation's activation."""

    module: ModuleName
    type: str
    leaf: bool
    calls: int = 0
    activation: Gauge = field(default_factory=Gauge)
    gradient: Gauge = field(default_factory=Gauge)
    shared_with: dict[int, OpSlot] = field(default_factory=dict)


@dataclass(eq=False)
class ParameterSlot:
    """A parameter, under the first name that it was met by; `state` has a gauge for each optimizer state."""

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

    def state_gauge(self, key: str, dtype: torch.dtype) -> Gauge:
        gauge = self.state.get(key)
        if gauge is None:
            gauge = self.state[key] = Gauge()
            self.state_dtypes[key] = dtype_name(dtype)
        return gauge

    @property
    def gauges(self) -> Iterator[Gauge]:
        yield from (self.weight, self.gradient, self.update, *self.state.values())
