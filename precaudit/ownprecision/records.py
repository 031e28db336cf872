"""What a run records of a script's own low precision; without torch, so that any process can load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

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
class SumLoss(Entry):
    """Gradients that are summed in half: the largest share of a sum's energy that is lost."""

    fqn: str
    dtype: str
    lost: float


@dataclass(frozen=True)
class GradientSumLoss(SumLoss):
    """Gradients of several backward passes, which a parameter's `.grad` sums."""


@dataclass(frozen=True)
class RowSumLoss(SumLoss):
    """Gradients of a table's row that is looked up many times, by the operation `op`."""

    op: str


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
class Cancellation(Entry):
    """A difference of rounded values; `lost` is their rounding, relative to the difference or to its spread."""

    fqn: str
    op: str
    dtype: str
    lost: float


@dataclass(frozen=True)
class CastLoss(Entry):
    dtype: str
    lost: float


@dataclass(frozen=True)
class VanishedInCast(CastLoss):
    """The share of the non-zero values that became zero."""


@dataclass(frozen=True)
class BlurredInCast(CastLoss):
    """The relative error of the differences between values."""


@dataclass(frozen=True)
class RoundedConstant(Entry):
    """A number that the script makes a low tensor of and that `becomes` another one there: a decay of 0.999 becomes
    one."""

    dtype: str
    value: float
    becomes: float


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
    float32. `in_place`: it changes a tensor that is low already. `late`: it came after the last step."""

    dtype: str
    op: str
    amax: float
    step: int
    in_place: bool = False
    late: bool = False


@dataclass(frozen=True)
class NonFiniteLoss(Entry):
    """The operation, in any dtype, that made the loss non-finite, the nan or inf of inputs as large as `amax`: None
    where an input was infinite. `fqn` is the module, "" outside of all."""

    op: str
    step: int
    fqn: str = ""
    nan: bool = True
    amax: float | None = None


@dataclass(frozen=True)
class NonFiniteData(Entry):
    """The first operation that took values of a non-finite loss which no operation had made: so many of a tensor of
    `numel` values. `fqn` is the module, "" outside of all."""

    op: str
    step: int
    nan: bool
    bad: int
    numel: int
    fqn: str = ""


@dataclass(frozen=True)
class NonFiniteGradient(Entry):
    """The operation whose backward made the gradient of a finite loss nan, or else inf."""

    op: str
    nan: bool
    step: int
    fqn: str = ""


@dataclass(frozen=True)
class LostGradient(Entry):
    """A gradient that overflowed in its parameter's dtype, or if that is float32, inside autocast; `scale` is the loss
    scale, 0 without one."""

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
    """A loss scale that the script raises without a limit, or `begins` with already."""

    scale: float
    step: int
    begins: bool = False


@dataclass(frozen=True)
class TrainedLow(Entry):
    """An optimizer trains low parameters."""


_Kind = TypeVar("_Kind", bound=Entry)
Relative = tuple[float, float]
"""How far a script changes a gradient itself, and the gradient after it, both relative to the gradient before it."""


@dataclass(frozen=True)
class Cast:
    """A line of the script that casts to a low dtype; `through` is the library's line that does so by its order."""

    place: Location
    dtype: str
    through: Location | None = None


@dataclass(frozen=True)
class Scaler:
    """The settings of the script's GradScaler, and whether it scales a loss."""

    init_scale: float
    growth_interval: int
    used: bool = False


@dataclass(frozen=True)
class StaleCast:
    """An autocast region, opened at `place`, that stays open over an optimizer's steps: the first module whose weights
    it has cast before, and for how many steps the oldest copy was used."""

    place: Location | None
    fqn: str
    optimizer: str
    steps: int


MisuseKind = Literal[
    "adds_by_hand",
    "adds_scaled",
    "changes_scaled",
    "clips_by_hand",
    "clips_scaled",
    "hooks",
    "made_anew",
    "other_scaler",
    "scales_twice",
    "steps_again",
    "steps_scaled",
    "unscaled_before",
    "unscaled_loss",
    "unscales_twice",
    "updated_between",
]
"""What each means is said by `ScaledGradients`, `ScaledByHand` and `GradientChanges`."""


@dataclass(frozen=True)
class Misuse:
    """A misuse of a loss scale: `function` used the gradients; `mixed` says that those of a scaled and of an unscaled
    loss are summed."""

    place: Location | None
    function: str = ""
    mixed: bool = False


@dataclass
class OwnPrecision:
    """A script's own mixed precision, filled in while it runs.

    - `autocast`: the dtype of its most relevant region, opened at `autocast_at`.
    - `plan`: the default format of a plan that it applies. `left_off`: what it prepares and leaves disabled.
    - `scripted`: where TorchScript compiles a module.
    - `scaled_by_hand`: the first loss scale that it applies itself.
    - `changed_by`: how far it changes gradients between the backward pass and the scaler, by optimizer in the order of
      first steps; `hooked_by`: in hooks of parameters. Each is the first finite change, and so on the initial weights.
    - `changes_gradients`: where it first does so. `penalizes_scaled`: where it scales a loss whose scaled gradients it
      has computed with before, by a gradient penalty or an inner step, without a division by the scale.
    - `scaler_steps`: how often it calls its GradScaler's `step`, in a run as written.
    - `low`: what its low precision loses.
    """

    autocast: str | None = None
    autocast_at: Location | None = None
    plan: str | None = None
    grad_scaler: Scaler | None = None
    left_off: str | None = None
    scripted: Location | None = None
    casts: Sequence[Cast] = ()
    scaled_by_hand: float | None = None
    stale_casts: StaleCast | None = None
    misuses: dict[MisuseKind, Misuse] = field(default_factory=dict)
    changed_by: Sequence[Relative | None] = ()
    hooked_by: Relative | None = None
    changes_gradients: Location | None = None
    penalizes_scaled: Location | None = None
    scaler_steps: int = 0
    low: Sequence[Entry] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether it is more than casts."""
        return bool(self.autocast or self.plan or self.grad_scaler)

    def entries(self, kind: type[_Kind]) -> list[_Kind]:
        """What its low precision loses in one way."""
        return [entry for entry in self.low if isinstance(entry, kind)]

    def facts(self) -> dict[str, Any]:
        """What is known of it, but for its losses and its course, as plain values for a report."""
        return {name: value for name, value in asdict(replace(self, low=(), scaler_steps=0)).items() if value}
