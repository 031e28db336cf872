"""The plan: a precision for each module and operation, and the loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from precaudit.formats import get_format
from precaudit.model.proof import Verdict

SCHEMA_VERSION = 1
ScaleMode = Literal["none", "static", "dynamic"]
Float8Scaling = Literal["tensor", "row"]
_STARTS_BELOW = 2


@dataclass(frozen=True)
class LossScale:
    """Loss-scale settings; `window` is [k_min, k_max], exponents of two, null where none was needed or exists."""

    mode: ScaleMode = "none"
    init_scale: float | None = None
    growth_interval: int | None = None
    window: tuple[int, int] | None = None
    predicted_skips: float | None = None

    @property
    def start(self) -> int | None:
        """The exponent to begin with, some octaves below the window's end where it has them: other seeds reach higher,
        and a skipped step makes another training of it."""
        return None if self.window is None else max(self.window[0], self.window[1] - _STARTS_BELOW)


@dataclass(frozen=True)
class OpFormat:
    fqn: str
    op: str
    format: str


@dataclass(frozen=True)
class Plan:
    """A precision per module and op, and the loss scale that goes with it.

    `modules` names every module that computes; `ops` are exceptions inside a module; `because` says why a
    module or `fqn:op` is not at the default; `types` are the classes of the modules that ran, by which a
    renamed module is found again and a replaced one is noticed. `float8_scaling` is one scale for a tensor, or one
    for each row that a product sums over. `verdict` is what verification said of it, None where nobody wrote it down.
    """

    default: str = "float32"
    modules: Mapping[str, str] = field(default_factory=dict)
    ops: tuple[OpFormat, ...] = ()
    because: Mapping[str, str] = field(default_factory=dict)
    loss_scale: LossScale = field(default_factory=LossScale)
    master_weights: bool = True
    matmul_precision: str = "highest"
    target: str = "h100"
    types: Mapping[str, str] = field(default_factory=dict)
    float8_scaling: Float8Scaling = "tensor"
    schema_version: int = SCHEMA_VERSION
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        """Formats by any of their names, `bf16` as well as `bfloat16`; PrecauditError for others."""
        set_ = partial(object.__setattr__, self)
        set_("default", get_format(self.default).name)
        set_("modules", {fqn: get_format(name).name for fqn, name in self.modules.items()})
        set_("ops", tuple(replace(op, format=get_format(op.format).name) for op in self.ops))

    @property
    def is_low_precision(self) -> bool:
        return any(f != "float32" for f in (self.default, *self.modules.values()))

    @property
    def narrowest(self) -> str:
        """The least precise format: the size of the perturbation that its rounding is."""
        low = {self.default, *self.modules.values()} - {"float32"}
        return min(low, key=lambda name: get_format(name).mantissa, default="float32")

    def grad_scaler(self, device: str | None = None) -> Any:
        """The configured `torch.amp.GradScaler` for a training loop; disabled where the plan needs none. `device` is
        "cuda" where there is one, else "cpu"."""
        from precaudit.planning.scaler import grad_scaler

        return grad_scaler(self, device)
