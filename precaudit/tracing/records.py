"""Records that leave a traced run; no torch, so that any process can hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from precaudit.model import Layer, Location, Op

STOPPING = frozenset("relu relu6 threshold hardtanh clamp clamp_min clamp_max masked_fill where".split())
"""Operations that pass some of the gradient on and replace the rest by zeros, even where that is infinite. What they
pass on is measured where it arrives."""
ABSORBING = frozenset({"add", "index_add", "scatter_add"})
"""Sums, which may absorb a small addend: their error is measured relative to that one."""


@dataclass(frozen=True)
class Fault:
    """Non-finite values that appeared at one operation: finite inputs in `forward`; in `backward` the gradient
    of the operation's result is the first in time to be non-finite."""

    step: int
    phase: str
    fqn: str
    model: str
    op: str
    nonfinite: int
    numel: int
    input_amax: float | None
    location: Location | None


@dataclass(frozen=True)
class Trace:
    """What a run showed. Of the `leaves`, the `unseen` have parameters and never ran in training; `maxima` are (step,
    log2 of the largest gradient that is half in the backward pass); `bypassed` maps a module whose forward was called
    directly, past its hooks, to the line that did."""

    layers: tuple[Layer, ...] = ()
    ops: tuple[Op, ...] = ()
    maxima: tuple[tuple[int, float], ...] = ()
    audited_steps: int = 0
    low_dtypes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    bypassed: Mapping[str, Location] = field(default_factory=dict)

    def name(self, model: str, fqn: str) -> str:
        """A module's name in this trace: the model's in front only where a plan is for several."""
        return fqn if len(self.models) <= 1 and model in self.models else f"{model}.{fqn}".rstrip(".")

    def with_halves(self, halves: Collection[tuple[str, str, str]]) -> Trace:
        """With what a run in a low format showed to be half, by model, module and operation: what takes another
        tensor's dtype, as `y.to(x.dtype)` does, is float32 in a trace of float32, whatever it is there."""
        known = {(self.name(model, fqn), op) for model, fqn, op in halves}
        return replace(self, ops=tuple(_in_half(op) if (op.fqn, op.op) in known else op for op in self.ops))

    @property
    def products(self) -> frozenset[str]:
        """The modules with operations that autocast lowers: matrix products, convolutions and their like."""
        return frozenset(op.fqn for op in self.ops if op.category == "lower")


def _in_half(op: Op) -> Op:
    record = op.tensor("activation")
    return op if op.half or record is None else replace(op, half=True, half_amax=record.stats.amax)


@dataclass(frozen=True)
class Grid:
    """Values made in a format by `op` that should all differ: of `wanted` values the format keeps `kept` apart."""

    model: str
    fqn: str
    op: str
    format: str
    amax: float
    wanted: int
    kept: int
    location: Location | None


@dataclass(frozen=True)
class GradientDifference:
    """A module's gradients in low precision against float32's on the same weights, batches and randomness.

    Sums of squares, averaged over `evaluations` batches: `delta` of the difference, `gradient` of float32's,
    `noise` of float32's change between neighbouring batches (half of it: the batch variance), `bias` of the
    difference that all batches share (by chance below zero where they share none) and `mean` of the mean gradient.
    `label` names the plan that was probed.
    """

    label: str
    fqn: str
    evaluations: int
    delta: float
    gradient: float
    noise: float
    bias: float
    mean: float

    @property
    def finite(self) -> bool:
        return self.delta < float("inf")
