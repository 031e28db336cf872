"""How a GPU's kernels use Tensor Cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimeShare:
    """Shares of GPU kernel time in [0, 1]; they sum to 1."""

    native: float
    legacy: float
    none: float
    unknown: float


@dataclass(frozen=True)
class Kernel:
    """One kernel name with its class and why; times in seconds, rates in TFLOP/s."""

    name: str
    tensor_core: str
    rule: str
    calls: int
    seconds: float
    generation: str | None = None
    operands: str | None = None
    library: str | None = None
    fqn: str | None = None
    op: str | None = None
    tflops: float | None = None
    peak_share: float | None = None


@dataclass(frozen=True)
class KernelTime:
    """Seconds in GPU kernels, by Tensor Core class, and what was computed in them where that is known."""

    seconds: float
    time_share: TimeShare
    flops: float | None = None
    tflops: float | None = None
    peak_share: float | None = None


@dataclass(frozen=True)
class LayerTime:
    """The kernels of a layer or, where `module` is false, of what is outside of all; `share` is their part of the time
    of all kernels. `before` is the layer's time in float32, where `time` is under the plan."""

    fqn: str
    time: KernelTime
    module: bool = True
    share: float = 0.0
    calls: int = 0
    before: KernelTime | None = None


@dataclass(frozen=True)
class TensorCores:
    """Tensor Core usage; `measured` is false where no GPU kernel was timed, and then shares are null."""

    measured: bool = False
    method: str = "not measured"
    time_share: TimeShare | None = None
    unattributed_share: float | None = None
    eligible_flops_share: float | None = None
    kernels: tuple[Kernel, ...] = ()
    device: str | None = None
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()
