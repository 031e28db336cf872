"""How long the runs of a command will still take."""

from __future__ import annotations

import time

from precaudit.profiling.settings import Settings
from precaudit.reporting.endings import TWIN
from precaudit.running.job import RunResult, RunSpec

_ONCE = ("reference", "replay", "timing")
_PER_SEED = ("candidate", "reference", TWIN)


class Forecast:
    """The seconds to go, at the mean pace of a training step so far.

    It assumes the fewest runs that end in a verdict: no repair, and no seeds beyond the first ones. Runs that turn out
    to be needed are added as they begin, so that the forecast may grow.
    """

    def __init__(self, settings: Settings) -> None:
        self._began: float | None = None
        self._done: dict[tuple[str, int], int] = {}
        self._left: dict[tuple[str, int], int | None] = dict.fromkeys(_expected(settings.pairs))

    def note(self, spec: RunSpec, result: RunResult) -> None:
        """Take in a run's result, partial or final."""
        self._began = self._began or time.monotonic()
        key = _named(spec.label, spec.seed)
        self._done[key] = result.steps
        self._left[key] = spec.job.steps - result.steps if result.partial else 0

    def to_go(self, steps: int) -> str:
        """The time to go in words, where a run takes so many `steps`; empty before the first step."""
        done, left = sum(self._done.values()), sum(steps if left is None else left for left in self._left.values())
        if not done or self._began is None:
            return ""
        seconds = (time.monotonic() - self._began) * left / done
        return f"about {seconds:.0f} s to go" if seconds < 120 else f"about {seconds / 60:.0f} min to go"


def _expected(pairs: int) -> set[tuple[str, int]]:
    compared = {(label, seed) for seed in range(pairs) for label in _PER_SEED}
    single = {(TWIN, 0)} if pairs == 1 else set()
    return ({(label, 0) for label in _ONCE} | compared) - single


def _named(label: str, seed: int) -> tuple[str, int]:
    """A run's key; the number of the first candidate is left out."""
    return label.removesuffix("-1"), seed
