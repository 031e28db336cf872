"""How far a tensor's range moves between two runs of one model, from nothing but the seed and the day.

The tolerances were measured: five small models (MLP, CNN with batch norm, GPT, two regressions), Adam and SGD,
20 to 30 steps, 5 to 8 seeds, every pair. The largest movements of tensors above 128 values, in binades:

    role                   amax   center
    weight                  0.6      0.4
    activation              0.9      0.7
    weight_grad             1.0      1.1
    activation_grad         1.1      2.7   (a batch learnt by heart: gradients follow the loss to zero)
    update                  1.0      0.5
    optimizer_state         1.7      1.3   (Adam's second moment squares the gradient)
"""

from __future__ import annotations

import math

from precaudit.model import TensorStats

TOLERANCE = {
    "weight": 1.5,
    "activation": 2.0,
    "weight_grad": 4.0,
    "activation_grad": 4.0,
    "update": 4.0,
    "optimizer_state": 8.0,
}

# One value's log2 magnitude has an exponential lower tail: 24 binades below the rest has a chance of 2^-24.
TAIL = 24.0


def independent_values(stats: TensorStats, calls: int) -> float:
    """Non-zero values of one call: later calls see nearly the same weights, so they add little evidence."""
    return max(1.0, stats.exponents.total / max(1, calls))


def amax_noise(role: str, values: float) -> float:
    """All of n values must be small for their maximum to be small, so the tail shrinks n-fold."""
    return TOLERANCE.get(role, max(TOLERANCE.values())) + TAIL / values


def center_noise(role: str, values: float) -> float:
    """A mean over n values: its error shrinks with the root of n."""
    return TOLERANCE.get(role, max(TOLERANCE.values())) + TAIL / math.sqrt(values)


def amin_noise(role: str) -> float:
    """The smallest of n values sits in the tail whatever n is."""
    return TOLERANCE.get(role, max(TOLERANCE.values())) + TAIL
