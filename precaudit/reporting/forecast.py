"""How many seeds would decide an inconclusive verdict."""

from __future__ import annotations

import math
from itertools import chain
from statistics import NormalDist

from precaudit.model import Verification
from precaudit.model.proof import ALPHA

AFFORDABLE = 100
"""More seeds than that are not asked for."""
_STEP = 8
_CLEAR, _HOPELESS = 1e-3, 1e6
"""In margins: a difference known so well is not in doubt for noise; one that scatters more is as good as that."""
_LIKELY = 0.9
"""How likely a number of seeds has to decide to be named."""


def seeds_needed(v: Verification) -> int | None:
    """How many seeds, the first of which are those that were run, will most likely verify a plan that is equal to
    float32; None where the bounds of the difference are unknown."""
    mean, lower, upper, margin = v.difference.mean, v.difference.lower, v.difference.upper, v.margin
    done = len(v.seeds)
    if mean is None or lower is None or upper is None or not margin or done < 2:
        return None
    reach = (upper - lower) / 2 / margin
    if not reach > _CLEAR:
        return None
    deviation = min(reach, _HOPELESS) * math.sqrt(done) / _quantile(done)
    numbers = chain(range(_STEP * (done // _STEP + 1), AFFORDABLE, _STEP), (AFFORDABLE * 2**k for k in range(40)))
    verify = (n for n in numbers if n > done and _chance(mean / margin, deviation, done, n) >= _LIKELY)
    return next(verify, AFFORDABLE * 2**40)


def _chance(mean: float, deviation: float, done: int, pairs: int) -> float:
    """The chance that a plan equal to float32 is within the margin after `pairs` pairs, where `mean` is that of the
    `done` first ones; in margins."""
    room = 1 - _quantile(pairs) * deviation / math.sqrt(pairs)
    later = NormalDist(mean * done / pairs, deviation * math.sqrt(pairs - done) / pairs)
    return later.cdf(room) - later.cdf(-room) if room > 0 else 0.0


def _quantile(pairs: int) -> float:
    from scipy import stats  # takes half a second, and is needed where a verdict is open alone

    return float(stats.t.ppf(1 - ALPHA, max(1, pairs - 1)))
