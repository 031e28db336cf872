"""How far a tensor's range moves between two runs of one model, from nothing but the seed and the day.

Measured: an MLP, a CNN with batch norm, a GPT and two regressions, Adam and SGD, 20 to 30 steps, 5 to 8 seeds, every
pair. The largest movements of tensors above 128 values, in binades:

    role                   amax     mean exponent
    weight                  0.6      0.4
    activation              0.9      0.7
    weight_grad             1.0      1.1
    activation_grad         1.1      2.7   (a batch learnt by heart: gradients follow the loss to zero)
    update                  1.0      0.5
    optimizer_state         1.7      1.3   (Adam's second moment squares the gradient)

The tolerances leave room above that for longer runs and heavier tails, and stay well below the 8 binades and more by
which a changed model moves: a gradient's amax may come from one spike in one step, so it gets the widest. Distances of
whole histograms are never below those of their means, and none passed these tolerances at 106 other seeds
(reports/comparison).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from precaudit.model import TensorStats

# by role: of amax, and of the exponents' distance
TOLERANCE: Mapping[str, tuple[float, float]] = {
    "weight": (1.5, 1.5),
    "activation": (2.5, 2.0),
    "weight_grad": (6.0, 4.0),
    "activation_grad": (6.0, 4.0),
    "update": (6.0, 4.0),
    "optimizer_state": (12.0, 8.0),
}

# One value's log2 magnitude has an exponential lower tail: 24 binades below the rest has a chance of 2^-24.
TAIL = 24.0


def independent_values(stats: TensorStats, calls: int) -> float:
    """Non-zero values of one call: later calls see nearly the same weights, so they add little evidence."""
    return max(1.0, stats.exponents.total / max(1, calls))


def amax_noise(role: str, values: float) -> float:
    """All of n values must be small for their maximum to be small, so the tail shrinks n-fold."""
    amax, _ = TOLERANCE[role]
    return amax + TAIL / values


def distance_noise(role: str, values: float) -> float:
    """A mean over n values: its error shrinks with the root of n."""
    _, distance = TOLERANCE[role]
    return distance + TAIL / math.sqrt(values)


def amin_noise(role: str) -> float:
    """The smallest of n values sits in the tail whatever n is."""
    amax, _ = TOLERANCE[role]
    return amax + TAIL
