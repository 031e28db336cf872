"""What a run records of a script's own low precision; without torch, so that any process can load it."""

from __future__ import annotations

from dataclasses import dataclass

from precaudit.model import Location


@dataclass(frozen=True)
class Entry:
    """One place in the script, unknown where it is None; a subclass for each kind of loss."""

    place: Location | None


@dataclass(frozen=True)
class Kept(Entry):
    """A low tensor that is kept from step to step: the buffer or optimizer state `buffer` of a module, or its weight
    without such a name; `fqn` is None for any other tensor."""

    model: str | None
    fqn: str | None
    buffer: str
    dtype: str


@dataclass(frozen=True)
class StateLoss(Kept):
    """The share of its changes' energy that rounding has lost."""

    lost: float


@dataclass(frozen=True)
class VainDecay(Kept):
    """A factor so close to one that it changes nothing after rounding."""

    factor: float


@dataclass(frozen=True)
class GradientSumLoss(Entry):
    """Gradients of several backward passes that a parameter's `.grad` sums: the largest share of a sum's energy that is
    lost."""

    fqn: str
    dtype: str
    lost: float


@dataclass(frozen=True)
class RowSumLoss(Entry):
    """Likewise of the gradients of a table's row that is looked up many times."""

    fqn: str
    dtype: str
    lost: float


@dataclass(frozen=True)
class OpLoss(Entry):
    """The relative error of an operation's result, or of its smaller addend. `region_steps`: it belongs to an
    optimizer's step inside an open autocast region."""

    fqn: str
    op: str
    dtype: str
    lost: float
    region_steps: bool = False


@dataclass(frozen=True)
class VanishedInCast(Entry):
    """The share of the non-zero values that became zero."""

    dtype: str
    lost: float


@dataclass(frozen=True)
class BlurredInCast(Entry):
    """The relative error of the differences between values."""

    dtype: str
    lost: float


@dataclass(frozen=True)
class ChangedIntegers(Entry):
    """Integers above `limit`, up to `amax`, of which `changed` many were rounded to others."""

    dtype: str
    limit: float
    amax: float
    changed: int


@dataclass(frozen=True)
class Overflow(Entry):
    """An operation that makes non-finite values in a low format, from inputs up to `amax`, and finite ones in
    float32."""

    dtype: str
    op: str
    amax: float
    step: int


@dataclass(frozen=True)
class NonFiniteLoss(Entry):
    """The operation, in any dtype, that made the loss non-finite."""

    op: str
    step: int


@dataclass(frozen=True)
class NonFiniteGradient(Entry):
    """The operation whose backward made the gradient of a finite loss nan, or else inf."""

    op: str
    nan: bool
    step: int


@dataclass(frozen=True)
class LostGradient(Entry):
    """A gradient that overflowed in its parameter's dtype; `scale` is the loss scale, 0 without one."""

    fqn: str
    dtype: str
    step: int
    scale: float


@dataclass(frozen=True)
class NonFiniteWeight(Entry):
    """Non-finite values that the script itself wrote to a weight."""

    fqn: str
    op: str
    step: int


@dataclass(frozen=True)
class NonFiniteStep(Entry):
    """An optimizer's step on non-finite gradients of so many parameters, `fqn` the module of the first."""

    fqn: str
    step: int
    parameters: int


@dataclass(frozen=True)
class RunawayScale(Entry):
    """A loss scale that the script raises without a limit."""

    scale: float
    step: int


@dataclass(frozen=True)
class TrainedLow(Entry):
    """An optimizer trains low parameters."""
