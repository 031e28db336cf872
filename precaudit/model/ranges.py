"""Statistics of a tensor's values: records that merge associatively (counts add, extremes combine), over steps,
micro-batches, processes and machines in any order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from precaudit.formats import Format

RESIDUE = 2.0**-20
"""A gradient this far below the rest of its module is what rounding leaves of one that is zero by construction (a key's
bias under softmax, a bias before batch norm): it needs no loss scale."""
Role = Literal["activation", "weight", "weight_grad", "activation_grad", "optimizer_state", "update"]


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
    """value * 2**k; inf on overflow, where math.ldexp raises."""
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

        Those of the format's top binade are split at the rounding threshold, as if spread log-uniformly from
        `amin_nonzero` to `amax`; at least one value counts where `amax` overflows.
        """
        threshold, top = target.overflow_threshold, target.exponent_max
        if not self.numel or self.amax < threshold:
            return 0.0
        above = sum(n for e, n in self.exponents.items() if e > top)
        low, limit, high = max(math.log2(self.amin_nonzero), top), math.log2(threshold), math.log2(self.amax)
        over = 1.0 if low >= limit else 1 - (limit - low) / (min(high, top + 1) - low)
        in_top = sum(n for e, n in self.exponents.items() if e == top)
        return max(above + in_top * over, 1.0) / self.numel

    def underflow_rate(self, target: Format) -> float:
        """Share of the values seen that are not zero but would round to zero in the format.

        A magnitude of just `flush_threshold` rounds to zero and the rest of its binade does not: only
        `amin_nonzero` tells that there is one, and `amax` that all are.
        """
        if not self.numel:
            return 0.0
        cut = self._flush_cut(target)
        below = sum(n for e, n in self.exponents.items() if e < cut)
        return max(below, int(0 < self.amin_nonzero <= target.flush_threshold)) / self.numel

    def flushed_energy(self, target: Format) -> float:
        """Share of the sum of squares carried by values that would round to zero in the format.

        Taken from the histogram, as if values were spread alike in every binade.
        """
        bins = self.exponents.items()
        if not bins:
            return 0.0
        cut, top = self._flush_cut(target), bins[-1][0]
        energy = [(e, math.ldexp(n, 2 * (e - top))) for e, n in bins]
        return sum(share for e, share in energy if e < cut) / sum(share for _, share in energy)

    def _flush_cut(self, target: Format) -> int:
        """The first exponent whose values don't round to zero: the threshold's own, unless no value exceeds it."""
        return math.frexp(target.flush_threshold)[1] - int(self.amax > target.flush_threshold)


def residue_limit(gradients: Iterable[TensorStats]) -> float:
    """The rms below which a module's gradients are a residue of rounding."""
    return RESIDUE * max((stats.rms for stats in gradients), default=0.0)


@dataclass(frozen=True)
class FormatFit:
    """How a tensor role fits a format: shares in [0, 1]."""

    overflow_rate: float
    underflow_rate: float
    flushed_energy: float


@dataclass(frozen=True)
class TensorRecord:
    """The statistics of one role of a layer or op; `name` distinguishes the parameters of a layer (`weight`,
    `bias`)."""

    role: Role
    stats: TensorStats
    name: str = ""
    dtype: str = "float32"
    formats: Mapping[str, FormatFit] = field(default_factory=dict)

    @property
    def is_gradient(self) -> bool:
        return self.role in ("activation_grad", "weight_grad")
