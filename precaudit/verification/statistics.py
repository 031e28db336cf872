"""Statistics of loss curves: the window to compare, the scale and margin of differences, and whether a curve learns.

All curves are sequences of one loss per optimizer step. A trial may have ended early; two curves are
then compared over the steps both have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Losses = Sequence[float]

MARGIN_FLOOR, MARGIN_CAP = 0.0005, 0.0025
"""Bounds of the usual margin, relative to the loss."""
# A plan may cost as much as one step in fifty.
PROGRESS_SHARE = 0.02
# Where float32 itself does not repeat a loss to within the margin, the margin follows its noise, up to here.
NOISE_LIMIT = 0.01
# Where no look decides with that, it follows up to here, but not beyond a quarter of the deviation between seeds: the
# customary strict margin for the equivalence of means (Wellek).
LAST_LIMIT, SEED_SHARE = 0.03, 0.25
# A loss near zero is judged on this share of the range it came down from, not on what little is left of it.
RANGE_SHARE = 0.1
# A plan passes when it surely kept nine tenths of what float32 learned, however large a constant the loss carries.
LEARNED_SHARE = 0.1
LEARNED_ALPHA = 0.02
"""Significance level for the movement of the float32 loss."""
FEWEST_STEPS = 5
"""A shorter curve can't tell learning from noise."""
_BLOCKS = 4
"""Parts of the window whose differences are combined into one noise floor."""
AGREED_ALPHA = 0.05
"""Significance level for seeds that move alike."""
# Simulated, three seeds of 60 steps: of random walks 97 in 100 seem to have learned, and 82 are beyond both limits with
# seeds that disagree; of exponential falls with independent noise, one in 200 at most.
_AUTOCORRELATION_LIMIT = 0.2
_RESIDUAL_LIMIT = 0.1
# A candidate is called exploded when it stays above this multiple of the largest loss of the reference.
EXPLOSION = 10.0


@dataclass(frozen=True)
class Guard:
    """Whether float32 references learn, as a proof needs, and why. `open`: more seeds may change a negative answer;
    `finite`: all their losses are finite; `moved`: how far the loss went, relative to its final size."""

    passed: bool
    detail: str
    open: bool = False
    finite: bool = True
    moved: float = math.nan


@dataclass(frozen=True)
class Divergence:
    """The step (from 0) at which a candidate diverges for good."""

    step: int
    detail: str


# ---------------------------------------------------------------- the window


def horizon(reference: Losses, perturbed: Losses) -> int:
    """How many leading steps the losses of a float32 run and its twin (with rounded initial weights) stay together.

    Together means closer than the smallest margin that is ever applied. A plan rounds at every step, so its pairs
    separate earlier, which costs power, not validity, since the spread of the pairs is measured.
    """
    a, b = _common(reference, perturbed)
    with np.errstate(invalid="ignore", over="ignore"):
        together = np.abs(b - a) <= MARGIN_FLOOR * typical_loss(a, slice(None))
    return len(a) if together.all() else int(np.argmin(together))


def comparison_window(steps: int, horizon: int) -> slice:
    """The last steps of a run, over which losses are averaged and compared.

    A quarter of the run while pairs stay together. Beyond the horizon single steps are chaotic, and the mean over the
    last half has less noise.
    """
    width = max(1, math.ceil(steps / (4 if horizon >= steps else 2)))
    return slice(max(0, steps - width), steps)


def noise_floor(reference: Losses, perturbed: Losses, window: slice) -> float:
    """Relative difference of window means that float32 shows against itself.

    One twin gives one difference, which may be small by chance; the rms over blocks of the window uses all of
    it. It equals the difference when the twin is off by a constant, and twice its standard deviation when
    the four blocks are independent.
    """
    both = _common(reference, perturbed)
    a, b = (values[window] for values in both)
    if not len(a) or not np.isfinite(a).all():
        return math.nan
    if not np.isfinite(b).all():
        return math.inf
    parts = np.array_split(b - a, min(_BLOCKS, len(a)))
    rms = math.sqrt(np.mean([part.mean() ** 2 for part in parts]))
    return _relative(rms, typical_loss(both[0], window))


def repeatability(twins: Sequence[tuple[Losses, Losses]], window: slice) -> float:
    """The relative difference that float32 runs stay within in 95 of 100 cases: twice the rms of the noise floors of
    (run, twin) pairs; `nan` without a comparable pair."""
    floors = np.array([noise_floor(run, twin, window) for run, twin in twins])
    floors = floors[~np.isnan(floors)]
    return 2 * math.sqrt(float(np.mean(floors**2))) if len(floors) else math.nan


def by_chance(twins: Sequence[tuple[Losses, Losses]], window: slice, pairs: int) -> float:
    """How far from zero the mean relative difference of `pairs` float32 pairs may be by chance: twice its standard
    error, estimated from (run, twin) pairs; 0 without a comparable one. Both orders of each pair count, since either
    run could have been the reference, and relative differences are not symmetric."""
    found = _between([pair for twin in twins for pair in permutations(twin)], window)
    found = found[~np.isnan(found)]
    return 2 * math.sqrt(float(np.mean(found**2)) / pairs) if len(found) and pairs else 0.0


# ---------------------------------------------------------------- scale and margin


def typical_loss(losses: ArrayLike, window: slice) -> float:
    """The magnitude that 0.25% "of the loss" refers to.

    The mean magnitude over the window; for losses that end near zero (an overfitted batch) or cross it (log densities),
    a share of the range covered in training. The range excludes 5% on either side, so that neither an odd first value
    nor a transient spike makes every difference look small.
    """
    values = np.asarray(losses, float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan
    seen = np.abs(values[window])
    seen = seen[np.isfinite(seen)]
    low, high = np.percentile(finite, [5, 95])
    return max(float(seen.mean()) if len(seen) else 0.0, RANGE_SHARE * float(high - low))


def relative_differences(
    reference: Sequence[Losses], candidate: Sequence[Losses], window: slice
) -> NDArray[np.float64]:
    """A relative difference of the mean loss in the window for each seed; positive is worse than float32.

    `inf` where only the candidate is not finite; `nan` where there is nothing to compare with: the float32 run
    is not finite itself or zero throughout, or the runs have no step of the window in common.
    """
    return np.array([_difference(a, b, window) for a, b in zip(reference, candidate, strict=True)])


def _between(pairs: Sequence[tuple[Losses, ...]], window: slice) -> NDArray[np.float64]:
    """Relative differences of (reference, candidate) pairs."""
    return relative_differences([one for one, _ in pairs], [other for _, other in pairs], window)


def margin(reference: Sequence[Losses], window: slice, noise: float = 0.0) -> float:
    """The largest relative difference that still counts as the same training.

    0.25% of the loss or one standard deviation between seeds, whichever is less, but at least 0.05%; one seed
    tells no deviation, which leaves the 0.25%. It rises, to 1% at most, to `noise` (`repeatability`: what float32
    does not repeat itself cannot be asked of a plan) and to `progress`: early in training, where the loss still
    falls by percents a step, 0.25% is a fraction of a step.
    """
    deviation = seed_deviation(reference, window)
    usual = max(MARGIN_FLOOR, min(MARGIN_CAP, MARGIN_CAP if math.isnan(deviation) else deviation))
    allowances = [min(value, NOISE_LIMIT) for value in (noise, progress(reference, window)) if not math.isnan(value)]
    return max([usual, *allowances])


def last_margin(reference: Sequence[Losses], window: slice, own: float) -> float:
    """The margin where the last look does not decide with the usual one: `own`, what single float32 runs differ by
    from each other in 95 of 100 cases (`by_chance`), up to a quarter of the deviation between seeds; or `progress`.
    3% at most."""
    found = [min(SEED_SHARE * seed_deviation(reference, window), own), progress(reference, window)]
    return min(LAST_LIMIT, max((value for value in found if not math.isnan(value)), default=0.0))


def progress(reference: Sequence[Losses], window: slice) -> float:
    """The relative change of the loss over `PROGRESS_SHARE` of the run's steps, at the pace of the window.

    The pace is the median over seeds of the change from the first to the second half of the window, so the
    noise of single steps averages out. `nan` where the window is too short to show one.
    """
    paces = []
    for run in reference:
        part = _array(run)[window]
        half = len(part) // 2
        if half and np.isfinite(part).all():
            change = float(part[-half:].mean() - part[:half].mean()) / (len(part) - half)
            paces.append(_relative(change, typical_loss(run, window)) * len(run))
    return PROGRESS_SHARE * abs(float(np.median(paces))) if paces else math.nan


def seed_deviation(reference: Sequence[Losses], window: slice) -> float:
    """Standard deviation of the window's mean loss between seeds, relative; `nan` for fewer than two."""
    parts = [_array(run)[window] for run in reference]
    means = np.array([part.mean() if len(part) and np.isfinite(part).all() else math.nan for part in parts])
    scales = np.array([typical_loss(run, window) for run in reference])
    usable = np.isfinite(means) & np.isfinite(scales)
    if usable.sum() < 2:
        return math.nan
    return _relative(float(means[usable].std(ddof=1)), float(scales[usable].mean()))


def seed_spread(reference: Sequence[Losses], window: slice) -> float:
    """The standard deviation of `relative_differences` between independent trainings, estimated from pairs of seeds;
    `nan` for fewer than two. It is sqrt(2) times `seed_deviation` where all end near one loss, and more where some end
    near zero."""
    found = _between(list(permutations(reference, 2)), window)
    found = found[np.isfinite(found)]
    return math.sqrt(float(np.mean(found**2))) if len(found) else math.nan


# ---------------------------------------------------------------- single curves


def learned(losses: Losses, margin: float = MARGIN_CAP, curves: int = 1, more: float = 1.0) -> Guard:
    """Whether the reference moved: significantly, and by more than a candidate may differ.

    Any direction counts, since adversarial and reinforcement losses rise and fall; a run that stands still
    proves nothing, because a plan that learns nothing would look the same. Twice the margin is what the
    verdict is sure to see. Of several `curves`, one of which has to move, each is asked for more (Bonferroni).
    `more` is how many times as many seeds the mean may yet be over: noise in it shrinks by the root of that.
    """
    values = _array(losses)
    if not np.isfinite(values).all():
        detail = f"the float32 loss is not finite at step {int(np.argmin(np.isfinite(values)))}"
        return Guard(False, detail, finite=False)
    if len(values) < FEWEST_STEPS:
        return Guard(False, f"{len(values)} steps cannot tell learning from noise; run {FEWEST_STEPS} or more")
    if np.ptp(values) == 0:
        return Guard(False, f"the float32 loss is {values[0]:.4g} at every step")
    quarters = np.array([part.mean() for part in np.array_split(values, 4)])
    moved = _relative(float(np.ptp(quarters)), typical_loss(values, slice(-math.ceil(len(values) / 4), None)))
    p, needed = _movement_p(values), 2 * margin
    detail = f"the float32 loss went from {quarters[0]:.4g} to {quarters[-1]:.4g} (first and last quarter, p = {p:.2g})"
    if moved <= needed:
        detail += f"; it moved by {moved:.2%} of its final size, and more than {needed:.2%} proves something"
    alpha, is_large = LEARNED_ALPHA / curves, moved > needed
    in_reach = bool(stats.norm.isf(p / 2) * math.sqrt(more) >= stats.norm.isf(alpha / 2))
    return Guard(p <= alpha and is_large, detail, in_reach and is_large, moved=moved)


def wanders(losses: Losses) -> bool:
    """Whether the residuals of a curve from its trend are large and autocorrelated, as with ordered batches or returns
    in reinforcement learning: consecutive losses are then not independent, and tests of movement are too optimistic."""
    values = _array(losses)
    if len(values) < 8 or not np.isfinite(values).all():
        return False
    time = np.linspace(0, 1, len(values))
    trend = np.stack([np.ones_like(time), time, time**2, np.exp(-8 * time), np.exp(-len(time) / 3 * time)], axis=1)
    rest = values - trend @ np.linalg.lstsq(trend, values)[0]
    energy, whole = float(rest @ rest), float(np.square(values - values.mean()).sum())
    return energy > _RESIDUAL_LIMIT * whole and float(rest[1:] @ rest[:-1]) > _AUTOCORRELATION_LIMIT * energy


def seeds_agree(curves: Sequence[Losses]) -> bool:
    """Whether the seeds, which are independent even if consecutive losses aren't, moved alike between two quarters:
    the largest t of the six moves, Bonferroni-corrected. Random walks agree in about 1 of 20."""
    quarters = np.array([[part.mean() for part in np.array_split(_array(curve), 4)] for curve in curves])
    moves = [quarters[:, later] - quarters[:, earlier] for later in range(4) for earlier in range(later)]
    errors = [move.std(ddof=1) / math.sqrt(len(curves)) for move in moves]
    found = [_relative(abs(move.mean()), error) for move, error in zip(moves, errors, strict=True) if move.any()]
    t = max((math.inf if math.isnan(value) else value for value in found), default=0.0)
    return 2 * float(stats.t.sf(t, len(curves) - 1)) <= AGREED_ALPHA / len(moves)


def diverged(reference: Losses, candidate: Losses) -> Divergence | None:
    """Where the candidate's loss becomes non-finite, or explodes until the end, and float32's does not.

    A transient spike, or one in the very last step, is left to the comparison of means.
    """
    a, b = _common(reference, candidate)
    steps = len(a) if np.isfinite(a).all() else int(np.argmin(np.isfinite(a)))
    a, b = a[:steps], b[:steps]
    if not np.isfinite(b).all():
        step = int(np.argmin(np.isfinite(b)))
        return Divergence(step, f"the loss is {b[step]} at step {step}; float32 has {a[step]:.4g} there")
    peak = float(np.abs(a).max(initial=0.0))
    calm = np.flatnonzero(np.abs(b) <= EXPLOSION * peak)
    step = int(calm[-1]) + 1 if len(calm) else 0
    if step > steps - 2 or peak == 0:
        return None
    return Divergence(step, f"the loss is {b[step]:.4g} at step {step} and stays up; float32 never passes {peak:.4g}")


def _movement_p(values: NDArray[np.float64]) -> float:
    """p-value of "no movement", Bonferroni-corrected over three tests: a trend (Kendall), different levels of the
    quarters (Kruskal-Wallis), and a start that differs from the second half (Mann-Whitney)."""
    trend = float(stats.kendalltau(np.arange(len(values)), values).pvalue)
    if len(values) < 8:
        return trend
    levels = float(stats.kruskal(*np.array_split(values, 4)).pvalue)
    start = values[: max(3, len(values) // 10)]
    fall = float(stats.mannwhitneyu(start, values[len(values) // 2 :]).pvalue)
    return min(1.0, 3 * min(trend, levels, fall))


def _difference(reference: Losses, candidate: Losses, window: slice) -> float:
    both = _common(reference, candidate)
    a, b = (values[window] for values in both)
    if not len(a) or not np.isfinite(a).all():
        return math.nan
    if not np.isfinite(b).all():
        return math.inf
    return _relative(float((b - a).mean()), typical_loss(both[0], window))


def _common(reference: ArrayLike, candidate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _array(reference), _array(candidate)
    steps = min(len(a), len(b))
    return a[:steps], b[:steps]


def _array(losses: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(losses, dtype=float)


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale else math.nan
