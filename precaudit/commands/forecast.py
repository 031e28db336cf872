"""How long the runs of a command will still take."""

from __future__ import annotations

import time

from precaudit.profiling.settings import Settings
from precaudit.running.job import RunResult, RunSpec

_ONCE = ("reference", "replay", "timing")
_PER_SEED = ("candidate", "reference", "reference-perturbed")


class Forecast:
    """The seconds to go, at the mean pace of a training step so far.

    It assumes the fewest runs that end in a verdict: no repair, and no seeds beyond the first ones. Runs that turn out
    to be needed are added as they begin, so that the forecast may grow.
    """

    def __init__(self, settings: Settings) -> None:
        pairs = settings.pairs
        compared = {(label, seed) for seed in range(pairs) for label in _PER_SEED}
        single = {("reference-perturbed", 0)} if pairs == 1 else set()
        self._began: float | None = None
        self._steps = {_named(*key): 0 for key in ({(label, 0) for label in _ONCE} | compared) - single}

    def note(self, spec: RunSpec, partial: RunResult) -> None:
        self._began = self._began or time.monotonic()
        self._steps[_named(spec.label, spec.seed)] = min(partial.steps, spec.job.steps)

    def to_go(self, steps: int) -> str:
        """The time to go in words where every run takes so many `steps`; empty before the first step."""
        done = sum(self._steps.values())
        if not done or self._began is None:
            return ""
        left = (time.monotonic() - self._began) * (steps * len(self._steps) - done) / done
        return f"about {left:.0f} s to go" if left < 120 else f"about {left / 60:.0f} min to go"


def _named(label: str, seed: int) -> tuple[str, int]:
    """A run's key; the number of the first candidate is left out."""
    return label.removesuffix("-1"), seed
