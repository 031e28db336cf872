"""A progress bar on stderr for each run, or a plain line where stderr is no terminal, and the time to go."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from precaudit.model import AS_WRITTEN, CANDIDATE, REFERENCE, TWIN
from precaudit.profiling.settings import Settings
from precaudit.running.job import ALONE, REPLAY, SEARCH, TIMING, WATCH, RunResult, RunSpec

PURPOSES: Mapping[str, str] = {
    REFERENCE: "float32",
    TWIN: "float32 from weights rounded once",
    REPLAY: "gradients compared with float32's",
    ALONE: "the script without precaudit",
    AS_WRITTEN: "the script's own precision",
    SEARCH: "which modules are to blame",
    WATCH: "where it goes wrong",
    TIMING: "time of a step in each precision",
    CANDIDATE: "training with the plan",
}
"""What runs are for, by the label that the report has for them; those of candidates are numbered."""


class RunProgress:
    """Called with every result, partial or final, from the threads that wait for runs; tells the time to go if it has
    a forecast."""

    def __init__(self, forecast: Forecast | None = None) -> None:
        self._forecast = forecast
        self._bars: dict[tuple[str, int], tqdm[None] | None] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for bar in self._bars.values():
            if bar is not None:
                bar.close()

    def __call__(self, spec: RunSpec, result: RunResult) -> None:
        key = (spec.label, spec.seed)
        with self._lock:
            if key not in self._bars:
                self._bars[key] = self._start(spec)
            bar = self._bars[key] if result.partial else self._bars.pop(key)  # a run that is repeated is told again
            if self._forecast is not None:
                self._forecast.note(spec, result)
            if bar is None:
                return
            bar.set_postfix_str(self._to_go(spec), refresh=False)
            bar.update(result.steps - bar.n)
            if not result.partial:
                bar.close()

    def _start(self, spec: RunSpec) -> tqdm[None] | None:
        title = f"{spec.label}, seed {spec.seed}"
        if not sys.stderr.isatty():
            passed = time.monotonic() - self._began
            told = "; ".join(filter(None, (f"{spec.job.steps} steps{_purpose(spec)}", self._to_go(spec))))
            print(f"precaudit: {passed:.0f} s: {title}: {told}", file=sys.stderr, flush=True)
            return None
        return tqdm(total=spec.job.steps, desc=title, unit="step", leave=False, dynamic_ncols=True)

    def _to_go(self, spec: RunSpec) -> str:
        told = self._forecast.to_go(spec.job.steps) if self._forecast else ""
        return f"{told} after this search" if told and spec.label == SEARCH else told


def _purpose(spec: RunSpec) -> str:
    known = PURPOSES.get(spec.label) or PURPOSES.get(spec.label.partition("-")[0], "")
    told = ", ".join(filter(None, (known, "every layer measured" if spec.audited else "")))
    return f" ({told})" if told else ""


_ONCE = (REFERENCE, REPLAY, TIMING)
_PER_SEED = (CANDIDATE, REFERENCE, TWIN)


class Forecast:
    """The seconds to go, at the mean pace of a run's training step so far, with `parallel` runs beside each other.

    It assumes the fewest runs that end in a verdict: no repair, and no seeds beyond the first ones. Runs that turn out
    to be needed are added as they begin, so that the forecast may grow; those of a search are not, as nobody knows how
    many it takes.
    """

    def __init__(self, settings: Settings, parallel: int = 1) -> None:
        self._parallel = parallel
        self._seconds, self._noted = 0.0, time.monotonic()
        self._steps = 0
        self._going: dict[tuple[str, int], int] = {}
        self._left: dict[tuple[str, int], int | None] = dict.fromkeys(_expected(settings.pairs))

    def note(self, spec: RunSpec, result: RunResult) -> None:
        """Take in a run's result, partial or final."""
        self._pass()
        key = spec.label.removesuffix("-1"), spec.seed  # the first candidate has been expected, by no number
        self._going[key] = result.steps
        if spec.label != SEARCH:
            self._left[key] = spec.job.steps - result.steps if result.partial else 0
        if not result.partial:
            self._steps += self._going.pop(key)  # a search has many runs of one label

    def to_go(self, steps: int) -> str:
        """The time to go in words, where a run takes so many `steps`; empty before the first step."""
        self._pass()
        done = self._steps + sum(self._going.values())
        if not done:
            return ""
        left = {key: steps if count is None else count for key, count in self._left.items()}
        beside = [count for key, count in left.items() if _beside(*key)]
        waited = sum(left.values()) - sum(beside) + max(sum(beside) / self._parallel, max(beside, default=0))
        seconds = self._seconds * waited / done
        return f"about {seconds:.0f} s to go" if seconds < 120 else f"about {seconds / 60:.0f} min to go"

    def _pass(self) -> None:
        """Count the time since the last note once for each run that goes on; before the first one, none does."""
        now = time.monotonic()
        if self._going or self._steps:
            self._seconds += (now - self._noted) * max(1, len(self._going))
        self._noted = now


def _beside(label: str, seed: int) -> bool:
    """Whether a run goes on beside others: those that are compared do, once the first reference tells of the script."""
    return seed > 0 or label == TWIN or label.partition("-")[0] == CANDIDATE


def _expected(pairs: int) -> set[tuple[str, int]]:
    compared = {(label, seed) for seed in range(pairs) for label in _PER_SEED}
    single = {(TWIN, 0)} if pairs == 1 else set()
    return ({(label, 0) for label in _ONCE} | compared) - single
