"""The plan: a precision for each module and operation, and the loss scale."""

from __future__ import annotations

import hashlib
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
DEFAULT_SCALE, DEFAULT_INTERVAL = 2.0**16, 2000
"""Those of torch.amp.GradScaler, which a plan has that tells none."""


@dataclass(frozen=True)
class LossScale:
    """Loss-scale settings; `window` is [k_min, k_max], exponents of two, null where none was needed or exists."""

    mode: ScaleMode = "none"
    init_scale: float | None = None
    growth_interval: int | None = None
    window: tuple[int, int] | None = None
    predicted_skips: float | None = None

    @property
    def initial(self) -> float:
        return self.init_scale or DEFAULT_SCALE

    @property
    def interval(self) -> int:
        return self.growth_interval or DEFAULT_INTERVAL

    @property
    def start(self) -> int | None:
        """The exponent k to start with, a few octaves below the upper end of the window where possible: other seeds may
        have larger gradients, and a skipped step changes the training."""
        return None if self.window is None else max(self.window[0], self.window[1] - _STARTS_BELOW)


@dataclass(frozen=True)
class OpFormat:
    fqn: str
    op: str
    format: str


@dataclass(frozen=True)
class Plan:
    """A precision for each module and operation, and the loss scale.

    - `modules`: the format of every module that computes; `ops`: exceptions inside a module.
    - `because`: the reason why a module (`fqn`) or operation (`fqn:op`) is not at the default.
    - `types`: the classes of the modules that ran, by which a renamed module is found again and a replaced one is
      noticed.
    - `float8_scaling`: one scale for each tensor, or for each row that a product sums over.
    - `verdict`: that of the verification; None if unknown.
    - `verdict_on`: the digest of the plan that the verdict is about, as people edit plans.
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
    verdict_on: str | None = None

    def __post_init__(self) -> None:
        """Normalize format names (`bf16` to `bfloat16`); PrecauditError for unknown ones."""
        set_ = partial(object.__setattr__, self)
        set_("default", get_format(self.default).name)
        set_("modules", {fqn: get_format(name).name for fqn, name in self.modules.items()})
        set_("ops", tuple(replace(op, format=get_format(op.format).name) for op in self.ops))

    @property
    def is_low_precision(self) -> bool:
        return any(f != "float32" for f in (self.default, *self.modules.values()))

    @property
    def low_modules(self) -> tuple[str, ...]:
        """Those that don't run in float32."""
        return tuple(fqn for fqn, name in self.modules.items() if name != "float32")

    @property
    def narrowest(self) -> str:
        """The least precise format of the plan; of equally precise ones the one with the least range."""
        used = map(get_format, {self.default, *self.modules.values()})
        return min(used, key=lambda each: (each.mantissa, each.exponent_max)).name

    @property
    def digest(self) -> str:
        """Of all by which it rules what is computed."""
        ops = sorted((op.fqn, op.op, op.format) for op in self.ops)
        scale = self.loss_scale.mode, float(self.loss_scale.init_scale or 0), self.loss_scale.growth_interval
        ruling = self.default, sorted(self.modules.items()), ops, scale, self.matmul_precision, self.float8_scaling
        return hashlib.sha256(repr(ruling).encode()).hexdigest()[:16]

    def judged(self, verdict: Verdict) -> Plan:
        """With what verification says of it as it is."""
        return replace(self, verdict=verdict, verdict_on=self.digest)

    @property
    def is_edited(self) -> bool:
        """Whether its verdict was said of another plan than it is now."""
        return self.verdict not in (None, "not_run") and self.verdict_on not in (None, self.digest)

    def grad_scaler(self, device: str | None = None) -> Any:
        """The configured `torch.amp.GradScaler` for a training loop; disabled where the plan needs none. `device` is
        "cuda" where there is one, else "cpu"."""
        from precaudit.planning.scaler import grad_scaler

        return grad_scaler(self, device)
