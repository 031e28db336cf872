"""Equivalence with a margin on paired seeds: two one-sided t tests, looked at after 3, 5 and 8 pairs.

"Not significantly different" would pass a plan for being noisy. Here a plan passes when its difference is
shown to lie inside the margin, fails when it is shown to lie outside, and is inconclusive otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from precaudit.model.proof import ALPHA, LOOKS

# Where differences scatter by more than the margin, three looks would reject an equal plan in 8% of cases, so a
# rejection then needs a tenth of alpha.
NOISY_ALPHA_SHARE = 0.1

Decision = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Equivalence:
    """Mean relative difference over `pairs` with confidence bounds (None where the pairs have no spread)."""

    mean: float | None
    lower: float | None
    upper: float | None
    decision: Decision
    pairs: int
    detail: str


def needs_more(pairs: int) -> int:
    """How many further pairs the next look takes; 0 after the last one."""
    return next((look - pairs for look in LOOKS if look > pairs), 0)


def equivalence(
    differences: Sequence[float] | NDArray[np.float64], margin: float, alpha: float = ALPHA, spread: float = math.inf
) -> Equivalence:
    """Test whether the mean of `relative_differences` is inside [-margin, margin].

    `differences` has shape (pairs,); these, `margin` and `spread` are relative to the loss. `alpha` is the level of
    each one-sided test.

    A mean below -margin fails like one above: a loss that is too low has often lost a term to underflow. Without
    spread between pairs there are no bounds: a single pair, or pairs that are all equal because the script fixes its
    own seed, pass when bit-identical to float32 and are inconclusive otherwise. `nan` pairs are ignored; an `inf`
    fails. `spread` (`seed_spread`) is the largest standard deviation that equal plans can have: a fault that affects
    some seeds more than others must not hide in its own scatter.
    """
    values = np.asarray(differences, float)
    values = values[~np.isnan(values)]
    if np.isinf(values).any():
        return Equivalence(math.inf, None, None, "fail", len(values), "a candidate's loss is not finite")
    if not len(values):
        return Equivalence(None, None, None, "inconclusive", 0, "no pair could be compared")
    if np.ptp(values) == 0:
        return _one_observation(float(values[0]), len(values))
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = float(stats.t.ppf(1 - alpha, len(values) - 1)) * deviation / math.sqrt(len(values))
    code = int(decide(mean, deviation, len(values), margin, alpha, spread))
    decision: Decision = ("fail", "inconclusive", "pass")[code + 1]
    detail = f"{mean:+.3%} in [{mean - half:+.3%}, {mean + half:+.3%}] over {len(values)} pairs, margin {margin:.3%}"
    return Equivalence(mean, mean - half, mean + half, decision, len(values), detail)


def decide(
    mean: ArrayLike,
    deviation: ArrayLike,
    pairs: int,
    margin: float,
    alpha: float = ALPHA,
    spread: float = math.inf,
) -> NDArray[np.int64]:
    """1 for pass, -1 for fail, 0 for inconclusive, elementwise over means and sample deviations."""
    centre, scatter = np.abs(np.asarray(mean, float)), np.asarray(deviation, float)
    bounded = np.minimum(scatter, spread if spread > 0 else math.inf)
    quantile = stats.t.ppf(1 - alpha, pairs - 1)
    strict = stats.t.ppf(1 - alpha * NOISY_ALPHA_SHARE, pairs - 1)
    inside = centre + quantile * scatter / math.sqrt(pairs) < margin
    outside = centre - np.where(bounded > margin, strict, quantile) * bounded / math.sqrt(pairs) > margin
    return inside.astype(np.int64) - outside.astype(np.int64)


def _one_observation(value: float, pairs: int) -> Equivalence:
    if value == 0:
        return Equivalence(0.0, 0.0, 0.0, "pass", pairs, "every loss compared is bit-identical to float32's")
    why = "one pair of runs" if pairs == 1 else f"the seed changes nothing, so {pairs} pairs count as one, which"
    detail = f"the loss differs by {value:+.3%}, and {why} can't show how much of that is chance"
    return Equivalence(value, None, None, "inconclusive", 1, detail)
