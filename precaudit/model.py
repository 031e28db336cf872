"""The data that flows through precaudit: frozen dataclasses that know nobody and import no torch.

Every record of measurements merges associatively (counts add, extremes combine), so it may be
summed over steps, micro-batches, processes and machines in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from precaudit.formats import Format

SCHEMA_VERSION = 1

Role = Literal["activation", "weight", "weight_grad", "activation_grad", "optimizer_state", "update"]
Severity = Literal["error", "warning", "note"]
Verdict = Literal["pass", "fail", "inconclusive", "screened", "not_run"]
Cause = Literal["noise", "float32", "unchanged", "interrupted"]
Execution = Literal["native", "emulated"]
ScaleMode = Literal["none", "static", "dynamic"]
Float8Scaling = Literal["tensor", "row"]


# ---------------------------------------------------------------- ranges


@dataclass(frozen=True)
class Exponents:
    """Histogram of floor(log2|x|) over finite non-zero values: `counts[i]` has exponent `minimum + i`."""

    minimum: int = 0
    counts: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.counts)

    def items(self) -> list[tuple[int, int]]:
        return [(self.minimum + i, count) for i, count in enumerate(self.counts) if count]

    def shift(self, k: int) -> Exponents:
        """The histogram of the same values times 2**k."""
        return Exponents(self.minimum + k, self.counts)

    def merge(self, other: Exponents) -> Exponents:
        if not self.counts or not other.counts:
            return self if self.counts else other
        low = min(self.minimum, other.minimum)
        high = max(self.minimum + len(self.counts), other.minimum + len(other.counts))
        counts = [0] * (high - low)
        for part in (self, other):
            for i, count in enumerate(part.counts, part.minimum - low):
                counts[i] += count
        return Exponents(low, tuple(counts))


def _ldexp(value: float, k: int) -> float:
    """value * 2**k, infinite where Python's own raises."""
    try:
        return math.ldexp(value, k)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class TensorStats:
    """Mergeable statistics of every value a tensor role took.

    `amax` and `amin_nonzero` are exact magnitudes over finite values (0.0 when there is none);
    `sum_squares` is over finite values; `numel == exponents.total + zeros + nonfinite`.
    """

    numel: int = 0
    amax: float = 0.0
    amin_nonzero: float = 0.0
    sum_squares: float = 0.0
    zeros: int = 0
    nonfinite: int = 0
    exponents: Exponents = field(default_factory=Exponents)

    @property
    def rms(self) -> float:
        finite = self.numel - self.nonfinite
        return math.sqrt(self.sum_squares / finite) if finite else 0.0

    def merge(self, other: TensorStats) -> TensorStats:
        smallest = [s.amin_nonzero for s in (self, other) if s.amin_nonzero > 0]
        return TensorStats(
            numel=self.numel + other.numel,
            amax=max(self.amax, other.amax),
            amin_nonzero=min(smallest, default=0.0),
            sum_squares=self.sum_squares + other.sum_squares,
            zeros=self.zeros + other.zeros,
            nonfinite=self.nonfinite + other.nonfinite,
            exponents=self.exponents.merge(other.exponents),
        )

    def shift(self, k: int) -> TensorStats:
        """The statistics of the same values times 2**k (exact: powers of two move exponents only)."""
        return replace(
            self,
            amax=_ldexp(self.amax, k),
            amin_nonzero=_ldexp(self.amin_nonzero, k),
            sum_squares=_ldexp(self.sum_squares, 2 * k),
            exponents=self.exponents.shift(k),
        )

    def overflow_rate(self, target: Format) -> float:
        """Share of the values seen that are finite but would round past the format's largest.

        Those of the format's top binade are split at the rounding threshold, as if spread log-uniformly up
        to `amax`; at least one value counts where `amax` overflows.
        """
        threshold, top = target.overflow_threshold, target.exponent_max
        if not self.numel or self.amax < threshold:
            return 0.0
        above = sum(n for e, n in self.exponents.items() if e > top)
        width = min(math.log2(self.amax) - top, 1.0)
        over = max(0.0, width - (math.log2(threshold) - top)) / width
        in_top = sum(n for e, n in self.exponents.items() if e == top)
        return max(above + in_top * over, 1.0) / self.numel

    def underflow_rate(self, target: Format) -> float:
        """Share of the values seen that are not zero but would round to zero in the format.

        A magnitude of just `flush_threshold` rounds to zero and the rest of its binade does not: only
        `amin_nonzero` tells that there is one.
        """
        if not self.numel:
            return 0.0
        cut = math.frexp(target.flush_threshold)[1] - 1
        below = sum(n for e, n in self.exponents.items() if e < cut)
        return max(below, int(0 < self.amin_nonzero <= target.flush_threshold)) / self.numel

    def flushed_energy(self, target: Format) -> float:
        """Share of the sum of squares carried by values that would round to zero in the format.

        Taken from the histogram, as if values were spread alike in every binade.
        """
        bins = self.exponents.items()
        if not bins:
            return 0.0
        cut, top = math.frexp(target.flush_threshold)[1] - 1, bins[-1][0]
        energy = [(e, math.ldexp(n, 2 * (e - top))) for e, n in bins]
        return sum(share for e, share in energy if e < cut) / sum(share for _, share in energy)


@dataclass(frozen=True)
class FormatFit:
    """How a tensor role fits a format: shares in [0, 1]."""

    overflow_rate: float
    underflow_rate: float
    flushed_energy: float


@dataclass(frozen=True)
class TensorRecord:
    """One role of a layer or op; `name` tells parameters of one layer apart (`weight`, `bias`)."""

    role: Role
    stats: TensorStats
    name: str = ""
    dtype: str = "float32"
    formats: Mapping[str, FormatFit] = field(default_factory=dict)


# ---------------------------------------------------------------- what was traced


@dataclass(frozen=True)
class Location:
    path: str
    line: int


@dataclass(frozen=True)
class Layer:
    """A module that computes: a leaf, or one whose own forward calls operations.

    `fqn` is the name in `model.named_modules()`; scripts that train several models get the model's
    variable name in front (`generator.net.0`). `trained` is false for models without trainable parameters
    (losses); `absorbed_update` maps a half format to the share of update energy that weights stored in it
    would absorb.
    """

    fqn: str
    type: str
    parameters: int
    calls: int
    tensors: tuple[TensorRecord, ...]
    model: str = ""
    tied_to: str | None = None
    trained: bool = True
    leaf: bool = True
    absorbed_update: Mapping[str, float] = field(default_factory=dict)

    def tensor(self, role: str, name: str | None = None) -> TensorRecord | None:
        return next((t for t in self.tensors if t.role == role and name in (None, t.name)), None)


@dataclass(frozen=True)
class Op:
    """An operation by the name torch gives it (`linear`, `softmax`), inside the module `fqn` that called it.

    `category` is CUDA autocast's: `lower`, `fp32`, `promote` or `other`; `local_error` maps a format to the
    relative rms error of this op alone when only it runs in that format; `flops` is per call, forward. `half` tells
    whether autocast would store its result in half precision; `constants` are the smallest and largest magnitudes
    of its scalar arguments; `integer_amax` is the largest magnitude of integer-valued inputs to a product;
    `autocast` is the dtype of the script's own autocast region around it, null outside of one.
    """

    fqn: str
    op: str
    calls: int
    category: str
    location: Location | None
    tensors: tuple[TensorRecord, ...]
    input_amax: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"
    flops: float | None = None
    local_error: Mapping[str, float] = field(default_factory=dict)
    half: bool = False
    constants: tuple[float, float] | None = None
    integer_amax: float | None = None
    autocast: str | None = None

    def tensor(self, role: str) -> TensorRecord | None:
        return next((t for t in self.tensors if t.role == role), None)


@dataclass(frozen=True)
class Finding:
    """Something a person should know; `rule` is a stable id, `fingerprint` survives moved lines."""

    rule: str
    severity: Severity
    message: str
    suggestion: str
    fqn: str | None = None
    op: str | None = None
    location: Location | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class LossScale:
    """Loss-scale settings; `window` is [k_min, k_max], exponents of two, null where none was needed or exists."""

    mode: ScaleMode = "none"
    init_scale: float | None = None
    growth_interval: int | None = None
    window: tuple[int, int] | None = None
    predicted_skips: float | None = None


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
    for each row that a product sums over.
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

    @property
    def is_low_precision(self) -> bool:
        return any(f != "float32" for f in (self.default, *self.modules.values()))

    def grad_scaler(self, device: str = "cuda") -> Any:
        """The configured `torch.amp.GradScaler` for a training loop; disabled where the plan needs none."""
        from precaudit.planning.scaler import grad_scaler

        return grad_scaler(self, device)


# ---------------------------------------------------------------- the proof


@dataclass(frozen=True)
class Trial:
    """One training run: `plan` is `reference`, `reference-perturbed`, `as-written`, `candidate-1`, ...

    `scale` is the magnitude that differences from a reference's loss are relative to.
    """

    seed: int
    plan: str
    losses: tuple[float, ...]
    skipped_steps: int
    steps: int = 0
    status: str = "ok"
    seconds: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Difference:
    """Mean paired relative difference of the loss (candidate over reference, minus 1) with its bounds."""

    mean: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Gate:
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Repair:
    """A module or op moved from one format to another between two rounds of verification."""

    fqn: str
    source: str
    target: str
    why: str
    op: str | None = None
    round: int = 1


@dataclass(frozen=True)
class Verification:
    """`cause` says why a verdict is inconclusive; `compared` are the first and the last step (from 1) over which
    losses were averaged for the difference."""

    verdict: Verdict = "not_run"
    execution: Execution | None = None
    margin: float | None = None
    seeds: tuple[int, ...] = ()
    steps: int = 0
    trials: tuple[Trial, ...] = ()
    difference: Difference = field(default_factory=Difference)
    gates: tuple[Gate, ...] = ()
    repairs: tuple[Repair, ...] = ()
    reason: str = ""
    evaluations: int = 0
    horizon: int | None = None
    cause: Cause | None = None
    compared: tuple[int, int] | None = None


# ---------------------------------------------------------------- Tensor Cores


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
class TensorCores:
    """Tensor Core usage; `measured` is false where no GPU kernel was timed, and then shares are null."""

    measured: bool = False
    method: str = "not measured"
    time_share: TimeShare | None = None
    unattributed_share: float | None = None
    eligible_flops_share: float | None = None
    kernels: tuple[Kernel, ...] = ()
    device: str | None = None
    layers: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- the report


@dataclass(frozen=True)
class Report:
    """Everything one profile found; `report.json` is this, key for key.

    `environment`, `job`, `performance` and `cost` are flat mappings of JSON values.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    ops: tuple[Op, ...] = ()
    findings: tuple[Finding, ...] = ()
    plan: Plan = field(default_factory=Plan)
    verification: Verification = field(default_factory=Verification)
    tensor_cores: TensorCores = field(default_factory=TensorCores)
    performance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    precaudit_version: str = ""

    def to_frame(self, table: Literal["layers", "ops", "findings"] = "layers") -> Any:
        """A pandas frame with a row per layer and role, op and role, or finding."""
        from precaudit.reporting.frames import frame

        return frame(self, table)

    def _repr_html_(self) -> str:
        from precaudit.reporting.notebook import summary_html

        return summary_html(self)
