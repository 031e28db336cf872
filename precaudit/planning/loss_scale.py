"""From gradient ranges to a loss scale 2**k: the underflow bound, the overflow bound, and predicted skips.

A scale only shifts the exponents of every gradient, so one float32 audit answers for all scales. `log2_max`
is log2 of the largest unscaled gradient magnitude of each step (-inf where none was seen), over all tensors that are
float16 in the backward pass; `gradients` are those tensors' statistics for each module.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from precaudit.formats import FORMATS
from precaudit.model import Layer, LossScale, Plan, TensorStats
from precaudit.model.plan import DEFAULT_INTERVAL
from precaudit.model.ranges import residue_limit

Gradients = Mapping[str, Sequence[TensorStats]]

HALF = FORMATS["float16"]
OVERFLOW = math.log2(HALF.overflow_threshold)
LOST_BUDGET = 1e-4
"""The share of a tensor's energy (sum of squares) that may be lost below float16's range."""
# Mean square of log-uniform values in [1, 2).
LOG_UNIFORM = 1.5 / math.log(2)
# Limit for scales, whatever vanishing gradients ask for: 2^24 already lifts 2^-48 into float16's subnormal range.
K_LIMIT = 24
SIGMAS = 3.09
"""Standard deviations above the mean that one step in a thousand exceeds, if log2 of the maxima is normal."""
# With fewer than three steps no spread is known; gradients of one model commonly vary by an octave.
ASSUMED_DEVIATION = 1.0
TREND_ALPHA = 0.02
"""Significance level of a trend."""
SHORTEST_INTERVAL = 100


@dataclass(frozen=True)
class Replay:
    """A dynamic scaler after a history of steps: skipped steps, final exponent k, good steps since its last change."""

    skips: int
    k: int
    good: int


def half_gradients(layers: Iterable[Layer], plan: Plan) -> dict[str, tuple[TensorStats, ...]]:
    """For each module that is float16 under the plan: the statistics of its gradients in the backward pass."""
    return {
        layer.fqn: tuple(t.stats for t in layer.tensors if t.is_gradient)
        for layer in layers
        if plan.modules.get(layer.fqn, plan.default) == "float16"
    }


# ---------------------------------------------------------------- underflow: the lower bound


def _lost_share(cells: float) -> float:
    """Share of energy that rounding to integers removes from values that are log-uniform in [cells, 2 cells)."""
    points = np.arange(max(1.0, cells), 2 * cells + 1)
    low, high = np.maximum(points - 0.5, cells), np.minimum(points + 0.5, 2 * cells)

    def antiderivative(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return points**2 * np.log(x) - 2 * points * x + x**2 / 2

    inside = low < high
    return float((antiderivative(high) - antiderivative(low))[inside].sum() / (1.5 * cells**2))


# Lost share of the binades that round to subnormals, from the one just above the flush threshold upwards.
_LOWEST = HALF.exponent_min - HALF.mantissa - 1
_SUBNORMAL_SHARES = np.array([_lost_share(2.0 ** (e - _LOWEST - 1)) for e in range(_LOWEST, HALF.exponent_min)])


def lost_energy(tensor: TensorStats, k: int) -> float:
    """Share of a gradient's energy (sum of squares) that float16 loses below its normal range at scale 2**k.

    Flushed values lose all; subnormal ones lose their rounding error. Values count as log-uniform within a
    binade, which misjudges the topmost binades; the exact sum of squares says by how much.
    """
    bins = tensor.exponents.items()
    if not bins:
        return 0.0
    exponents, counts = np.array(bins, dtype=float).T
    top = int(exponents.max())
    energy = counts * LOG_UNIFORM * 4.0 ** (exponents - top)
    position = exponents.astype(int) + k - _LOWEST
    subnormal = _SUBNORMAL_SHARES[np.clip(position, 0, len(_SUBNORMAL_SHARES) - 1)]
    share = np.select([position < 0, position < len(_SUBNORMAL_SHARES)], [1.0, subnormal], 0.0)
    lost = float((energy * share).sum() / energy.sum())
    exact = float(np.clip(math.ldexp(tensor.sum_squares, -2 * top) / energy.sum(), 0.5, 2.0))
    return lost * (1 - (1 - exact) * lost) / exact


def lost_share(tensors: Sequence[TensorStats], k: int) -> float:
    """Of a module's gradients, the largest share of energy that float16 loses at scale 2**k."""
    return max((lost_energy(tensor, k) for tensor in _significant(tensors)), default=0.0)


def needed_k(tensors: Sequence[TensorStats]) -> int | None:
    """The smallest k at which every tensor of a module keeps its energy; None where all gradients are zero."""
    return max((_tensor_k(t) for t in _significant(tensors) if t.exponents.items()), default=None)


def _significant(tensors: Sequence[TensorStats]) -> list[TensorStats]:
    limit = residue_limit(tensors)
    return [tensor for tensor in tensors if tensor.rms >= limit]


def k_min(gradients: Gradients) -> int | None:
    """The smallest k at which no tensor of any module loses more than 1e-4 of its energy."""
    return max((k for tensors in gradients.values() if (k := needed_k(tensors)) is not None), default=None)


def _tensor_k(tensor: TensorStats) -> int:
    occupied = [e for e, _ in tensor.exponents.items()]
    candidates = range(_LOWEST - max(occupied) - 1, HALF.exponent_min - min(occupied) + 1)
    return candidates[bisect_left(candidates, True, key=lambda k: lost_energy(tensor, k) <= LOST_BUDGET)]


# ---------------------------------------------------------------- overflow: the upper bound


def k_max(log2_max: Sequence[float]) -> int:
    """The largest k that leaves an octave between the expected largest gradient and overflow.

    Expected is 3.09 standard deviations above the mean or, with a significant trend, above its last value; at least the
    largest value seen. A dynamic scaler follows a trend that continues.
    """
    steps, seen = _observed(log2_max)
    if not len(seen):
        return K_LIMIT
    _, residuals = _trend(steps, seen)
    deviation = float(residuals.std(ddof=1)) if len(seen) >= 3 else ASSUMED_DEVIATION
    expected = max(float(seen.max()), float((seen - residuals)[-1]) + SIGMAS * deviation)
    return int(np.clip(math.floor(HALF.exponent_max - expected), -K_LIMIT, K_LIMIT))


def recommended_interval(log2_max: Sequence[float], room: float) -> int:
    """Steps between doublings: torch's 2000, or fewer where the observed gradients fell by more than `room`: so many
    octaves they may fall before a constant scale loses them. A short history says nothing of all later steps, while
    each doubling that gradients don't follow costs a step."""
    steps, seen = _observed(log2_max)
    slope, _ = _trend(steps, seen)
    if slope >= 0 or -slope * np.ptp(steps) <= room:
        return DEFAULT_INTERVAL
    return int(np.clip(-0.5 / slope, SHORTEST_INTERVAL, DEFAULT_INTERVAL))


def largest_k(log2_max: Sequence[float]) -> int:
    """The largest k at which none of these overflows."""
    return math.ceil(OVERFLOW - max(log2_max)) - 1


def _observed(log2_max: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices and values of the finite entries: -inf is an all-zero gradient, and no scale helps a non-finite one."""
    values = np.asarray(log2_max, dtype=float)
    (steps,) = np.isfinite(values).nonzero()
    return steps, values[steps]


def _trend(steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Slope in octaves per step (0 unless significant), and the residuals."""
    if len(values) < 5 or np.ptp(values) == 0:
        return 0.0, values - values.mean() if len(values) else values
    fit = stats.linregress(steps, values)
    if fit.pvalue > TREND_ALPHA:
        return 0.0, values - values.mean()
    return float(fit.slope), values - (fit.intercept + fit.slope * steps)


# ---------------------------------------------------------------- settings


def window(log2_max: Sequence[float], gradients: Gradients) -> tuple[int, int] | None:
    """(k_min, k_max), or None where no single scale suits every module."""
    need, fits = k_min(gradients), k_max(log2_max)
    low = -K_LIMIT if need is None else max(need, -K_LIMIT)
    return (low, fits) if low <= fits else None


def recommend(log2_max: Sequence[float], gradients: Gradients, steps: int) -> LossScale:
    """The loss scale for a run of `steps` steps, which starts a few octaves below 2**k_max if the window allows it;
    mode `none` where nothing is float16 in the backward pass."""
    if not gradients:
        return LossScale()
    scale = LossScale("dynamic", window=window(log2_max, gradients))
    start = k_max(log2_max) if scale.start is None else scale.start
    interval = recommended_interval(log2_max, start - scale.window[0] if scale.window else 0.0)
    skips = expected_skips(log2_max, start, interval, steps)
    return replace(scale, init_scale=2.0**start, growth_interval=interval, predicted_skips=skips)


def conflicts(gradients: Gradients, highest: int) -> dict[str, int]:
    """Modules whose gradients underflow at the highest possible k (`k_max`), with the k they need."""
    needs = {fqn: needed_k(tensors) for fqn, tensors in gradients.items()}
    return {fqn: k for fqn, k in needs.items() if k is not None and k > highest}


def scale_ranges(gradients: Gradients, peaks: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """The smallest and the largest k that suit each module; no k does where the first exceeds the second.

    `peaks` is log2 of the largest gradient inside a module, where it exceeds those of its inputs and outputs.
    """
    ranges = {}
    for fqn, tensors in gradients.items():
        if (need := needed_k(tensors)) is not None:
            largest = max(math.log2(max(tensor.amax for tensor in tensors)), peaks.get(fqn, -math.inf))
            ranges[fqn] = need, math.floor(HALF.exponent_max - largest)
    return ranges


def best_compromise(ranges: Mapping[str, tuple[int, int]]) -> tuple[int, tuple[str, ...]]:
    """The k that suits most modules, and the modules that it does not suit, for use where there is no window.

    A module may fail at either bound, so that one with huge gradients is given up rather than all others.
    """

    def outside(k: int) -> tuple[str, ...]:
        return tuple(fqn for fqn, (need, fits) in ranges.items() if not need <= k <= fits)

    ends = sorted({int(np.clip(end, -K_LIMIT, K_LIMIT)) for pair in ranges.values() for end in pair}, reverse=True)
    best = min(ends, key=lambda k: len(outside(k)), default=K_LIMIT)
    return best, outside(best)


# ---------------------------------------------------------------- replay of a dynamic scaler


def replay(log2_max: Sequence[float], init_k: int, growth_interval: int) -> Replay:
    """Simulate torch's dynamic scaler: halve and skip on overflow, double after `growth_interval` good steps."""
    k, good, skips = init_k, 0, 0
    for largest in log2_max:
        if not largest + k < OVERFLOW:
            k, good, skips = k - 1, 0, skips + 1
            continue
        good += 1
        if good == growth_interval:
            k, good = k + 1, 0
    return Replay(skips, k, good)


def predicted_skips(init_k: int, highest: int, growth_interval: int, steps: int) -> int:
    """Skips of a dynamic scaler where exactly the k up to `highest` fit: those of the descent, then a steady rate."""
    start = min(steps, max(0, init_k - highest))
    climb = (highest + 1 - min(init_k, highest)) * growth_interval
    left = steps - start - climb
    return start + (0 if left <= 0 else 1 + (left - 1) // (growth_interval + 1))


def expected_skips(log2_max: Sequence[float], init_k: int, growth_interval: int, steps: int) -> float:
    """Skips over `steps` steps: replayed over the observed ones, extrapolated from their second half."""
    known = replay(_held(log2_max[:steps]), init_k, growth_interval)
    beyond = steps - len(log2_max)
    _, late = _observed(log2_max[len(log2_max) // 2 :])
    if beyond <= 0 or not len(late):
        return float(known.skips)
    highest = largest_k(late.tolist())
    towards_growth = known.good if known.k <= highest else 0
    return float(known.skips + predicted_skips(known.k, highest, growth_interval, beyond + towards_growth))


def _held(log2_max: Sequence[float]) -> list[float]:
    """Fill steps that were not measured (-inf) with the value of the last measured one before."""

    def held(before: float, now: float) -> float:
        return before if now == -math.inf else now

    return list(accumulate(log2_max, held))
