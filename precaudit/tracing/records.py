"""Records of a traced run; without torch, so that any process can load them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from precaudit.model import Layer, Location, Op

STOPPING = frozenset("relu relu6 threshold hardtanh clamp clamp_min clamp_max masked_fill where".split())
"""Operations that pass on part of the gradient and replace the rest, even where it is infinite, by zeros. The part that
they pass on is measured at their inputs."""
IN_PLACE = frozenset({"__setitem__", "fill"})
"""Operations that write to a tensor which an earlier one has stored, in whatever format that was."""
STORED_ONCE = frozenset({"index_add", "scatter_add", "scatter_reduce"})
"""Sums that in float32 are added up there and stored once, whatever they are stored in."""
ABSORBING = frozenset({"add", "index_add", "scatter_add"})
"""Sums, which may absorb a small addend: their error is relative to that addend."""

HalfResult = tuple[str, str, str, Location | None]
"""A model, a module, an operation and a line of it, of which every result was half."""


def stands_alone(model: str, models: Collection[str]) -> bool:
    """Whether modules of a model are named without it in a trace of these models: where it is the only one."""
    return len(models) <= 1 and (model in models or not models)


@dataclass(frozen=True)
class Fault:
    """Non-finite values that appeared at one operation: `forward` in its result, from finite inputs; `backward` in a
    gradient that it passed on; `given` in its result's gradient, which came from outside of all modules."""

    step: int
    phase: str
    fqn: str
    model: str
    op: str
    nonfinite: int
    input_amax: float | None
    location: Location | None


@dataclass(frozen=True)
class Trace:
    """The measurements of a traced run.

    - `lines`: the operations that several lines of a module call, by line, where results of some are not half.
    - `leaves`: all leaf modules; `unseen`: those with parameters that never ran in training.
    - `maxima`: (step, log2 of the largest gradient that is half in the backward pass).
    - `bypassed`: modules whose forward was called directly, bypassing hooks, with the line that does so.
    """

    layers: tuple[Layer, ...] = ()
    ops: tuple[Op, ...] = ()
    lines: tuple[Op, ...] = ()
    maxima: tuple[tuple[int, float], ...] = ()
    audited_steps: int = 0
    low_dtypes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    bypassed: Mapping[str, Location] = field(default_factory=dict)

    def name(self, model: str, fqn: str) -> str:
        """A module's name in this trace, prefixed by its model's where there are several models."""
        return fqn if stands_alone(model, self.models) else f"{model}.{fqn}".rstrip(".")

    @property
    def trained(self) -> tuple[Layer, ...]:
        """The layers of trained models."""
        return tuple(layer for layer in self.layers if layer.trained)

    @property
    def products(self) -> frozenset[str]:
        """The modules with operations that autocast lowers: matrix products, convolutions and their like."""
        return frozenset(op.fqn for op in self.ops if op.category == "lower")


@dataclass(frozen=True)
class AliasedValues:
    """Values that `op` creates in a format: of `wanted` distinct ones only `kept` remain distinct."""

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

    All are sums of squares, averaged over `evaluations` batches: `delta` of the difference, `gradient` of float32's
    gradient, `noise` half of that of the change between consecutive batches (which estimates the batch variance),
    `bias` of the difference that all batches share (an unbiased estimate, so it may be negative), and `mean` of the
    mean gradient. `label` names the plan that was probed.
    """

    label: str
    fqn: str
    evaluations: int
    delta: float
    gradient: float
    noise: float
    bias: float
    mean: float
