"""Operating characteristics of the verdict by simulation: `python tests/calibration/simulate.py`.

Paired differences are normal with a mean and a standard deviation in units of the margin; every row runs the
sequence of looks as verification does. Half a margin of deviation is the planning case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from precaudit.verification.equivalence import LOOKS, decide


def verdicts(differences: NDArray[np.float64], margin: float = 1.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decision (1, 0, -1) and seeds spent for every row of differences, stopping at the first decisive look."""
    decision = np.zeros(len(differences), dtype=np.int64)
    seeds = np.full(len(differences), LOOKS[-1])
    for look in LOOKS:
        seen = differences[:, :look]
        now = decide(seen.mean(axis=1), seen.std(axis=1, ddof=1), look, margin)
        stopping = (decision == 0) & (now != 0)
        decision[stopping], seeds[stopping] = now[stopping], look
    return decision, seeds


def characteristics(mean: float, deviation: float, runs: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Shares of each verdict, and the seeds spent on average, at a true mean and deviation in margins."""
    differences = np.random.default_rng(seed).normal(mean, deviation, (runs, LOOKS[-1]))
    decision, seeds = verdicts(differences)
    return {
        "pass": float(np.mean(decision == 1)),
        "fail": float(np.mean(decision == -1)),
        "inconclusive": float(np.mean(decision == 0)),
        "seeds": float(seeds.mean()),
    }


def main() -> None:
    rows = [
        {"true difference": f"{mean:g} m", "paired SD": f"{deviation:g} m", **characteristics(mean, deviation, 200_000)}
        for deviation in (0.1, 0.25, 0.5, 0.7, 1.0, 2.0, 5.0, 20.0)
        for mean in (0.0, 0.5, 1.0, 2.0, -2.0)
    ]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))


if __name__ == "__main__":
    main()
