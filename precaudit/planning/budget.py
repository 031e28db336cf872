"""Error budget: how much a format perturbs the gradient, relative to the noise between batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from precaudit.model.ranges import RESIDUE
from precaudit.tracing.records import GradientDifference

RHO_LIMIT, SNR_LIMIT, BIAS_LIMIT = 0.01, 10.0, 0.2
"""The limits for `GradientError`. An error that batches share is limited by itself, since it does not average out."""
# Where batches hardly differ, any rounding error exceeds their noise: an error this far below the gradient itself is
# left to the trials.
CLEAR_SNR = 100.0


@dataclass(frozen=True)
class GradientError:
    """The error `delta` of the gradient `g` in a format, dimensionless; nan where not measurable.

    - `rho` = E|delta|^2 / tr Sigma, with Sigma the covariance of batch gradients: the error acts like a batch of
      B / (1 + rho) samples in place of B.
    - `snr` = |g|^2 / E|delta|^2; `bias` = |E delta| / |mean g|: the part that does not average out over batches. The
      mean is that of the K probed batches, with tr Sigma / K in its square: what is left without can mostly not be told
      from zero by so few, and a ratio to it would refuse healthy formats.
    - `label` is "format@phase of training".
    """

    label: str
    rho: float
    snr: float
    bias: float
    evaluations: int

    @property
    def format(self) -> str:
        return self.label.partition("@")[0]

    @property
    def phase(self) -> str:
        return self.label.partition("@")[2]

    @property
    def relative(self) -> float:
        """The rms error over the rms gradient."""
        return math.inf if self.snr == 0 else self.snr**-0.5

    @property
    def within_budget(self) -> bool:
        """Whether the error is acceptable. With unknown noise (rho nan) snr and bias decide; an overflow (rho inf) says
        nothing about rounding and is left to the trials."""
        if math.isinf(self.rho):
            return True
        quiet = not self.rho > RHO_LIMIT or math.isnan(self.rho) or self.snr >= CLEAR_SNR
        return quiet and self.snr >= SNR_LIMIT and self.bias <= BIAS_LIMIT


@dataclass(frozen=True)
class LostGradients:
    """A module whose own gradients are lost in a format: `error` is the ratio of rms error to rms gradient, `causes`
    are the modules responsible."""

    fqn: str
    format: str
    error: float
    causes: tuple[str, ...] = ()


def lost_gradients(format_name: str, differences: Iterable[GradientDifference]) -> list[LostGradients]:
    """Modules whose gradient error exceeds both the gradient and its noise, largest gradient first.

    A small loss that is added to a large one may lose its gradients without a trace in the loss or in the whole
    model's gradient. Gradients that are zero except for rounding residue don't count.
    """
    parts: dict[str, list[GradientDifference]] = {}
    for each in differences:
        if each.label.partition("@")[0] == format_name:
            parts.setdefault(each.fqn, []).append(each)
    sizes = {fqn: sum(each.gradient for each in found) for fqn, found in parts.items()}
    errors = {fqn: sum(each.delta for each in found) for fqn, found in parts.items()}
    noise = {fqn: sum(each.noise for each in found) for fqn, found in parts.items()}
    significant = [fqn for fqn, size in sizes.items() if size > RESIDUE**2 * sum(sizes.values())]
    lost = [fqn for fqn in significant if max(sizes[fqn], noise[fqn]) < errors[fqn] < math.inf]
    lost.sort(key=lambda fqn: -sizes[fqn])
    return [LostGradients(fqn, format_name, math.sqrt(errors[fqn] / sizes[fqn])) for fqn in lost]


def _ratio(a: float, b: float) -> float:
    if math.isinf(a):
        return math.inf
    return a / b if b > 0 else (0.0 if a == 0 else math.nan)


def gradient_error(label: str, differences: Iterable[GradientDifference]) -> GradientError | None:
    """The whole model's error under the plan `label`, summed over modules; None where nothing was probed."""
    parts = [d for d in differences if d.label == label]
    if not parts:
        return None
    delta, gradient = sum(d.delta for d in parts), sum(d.gradient for d in parts)
    noise, bias, mean = sum(d.noise for d in parts), sum(d.bias for d in parts), sum(d.mean for d in parts)
    return GradientError(
        label=label,
        rho=_ratio(delta, noise),
        snr=_ratio(gradient, delta) if delta > 0 else math.inf,
        bias=math.sqrt(_ratio(max(bias, 0.0), mean)) if mean > 0 else 0.0,
        evaluations=max(d.evaluations for d in parts),
    )
