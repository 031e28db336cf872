"""The time of a profile's runs, compared with that of the plain training steps in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from precaudit.profiling.audit import Runner
from precaudit.running.job import RunResult, RunSpec


class Clock:
    """A runner that keeps every result, for the timing at the end.

    `_wall_seconds` is the time spent in training steps; concurrent runs count once.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._results: list[tuple[RunSpec, RunResult]] = []
        self._wall_seconds = 0.0

    def __call__(self, spec: RunSpec) -> RunResult:
        return self.many([spec])[0]

    def many(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        start = time.perf_counter()
        results = self._runner.many(specs)
        wall = time.perf_counter() - start
        self._results += zip(specs, results, strict=True)
        inside = sum(result.seconds for result in results)
        stepping = sum(sum(result.step_seconds) for result in results)
        self._wall_seconds += stepping * min(1.0, wall / inside) if inside else 0.0
        return results

    def performance(self, seconds: float, measuring: float) -> dict[str, Any]:
        """The keys of a report's `performance`: `seconds_plain_steps` is the time of all steps at the pace of plain
        ones, `ratio` the actual time relative to that. The `measuring` stage counts in the total only."""
        pace, results = self._plain_pace(), [result for _, result in self._results]
        steps = sum(result.steps for result in results)
        stepping = sum(sum(result.step_seconds) for result in results)
        return {
            "seconds_total": seconds,
            "seconds_in_runs": sum(result.seconds for result in results),
            "steps_run": steps,
            "runs": len(results),
            "seconds_plain_steps": steps * pace if pace is not None else None,
            "seconds_startup": max(0.0, seconds - measuring - self._wall_seconds),
            "ratio": stepping / (steps * pace) if pace and steps else None,
        }

    def _plain_pace(self) -> float | None:
        """The pace of the median unmeasured float32 run, or of the fastest third; these run concurrently like all
        others."""
        runs = self._results
        plain = sorted(_pace(r) for spec, r in runs if spec.precision == "float32" and not spec.probe_dir and _pace(r))
        if not plain:
            plain = sorted(_pace(r) for _, r in runs if _pace(r))
            plain = plain[: max(1, len(plain) // 3)]
        return plain[len(plain) // 2] if plain else None


def _pace(run: RunResult) -> float:
    """Mean seconds per step without the first; a mean, as the steps of several optimizers differ."""
    later = run.step_seconds[1:]
    return sum(later) / len(later) if later else 0.0
