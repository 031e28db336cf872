"""A progress bar on stderr for each run; a plain line where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from tqdm import tqdm

from precaudit.running.job import RunResult, RunSpec


class RunProgress:
    """Called with every partial result, from the threads that wait for runs."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, int], tqdm[None] | None] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for bar in self._bars.values():
            if bar is not None:
                bar.close()

    def __call__(self, spec: RunSpec, partial: RunResult) -> None:
        key = (spec.label, spec.seed)
        with self._lock:
            if key not in self._bars:
                self._bars[key] = self._start(spec)
            bar = self._bars[key]
            if bar is None:
                return
            bar.update(partial.steps - bar.n)
            if partial.steps >= spec.job.steps:
                bar.close()

    def _start(self, spec: RunSpec) -> tqdm[None] | None:
        title = f"{spec.label}, seed {spec.seed}"
        if not sys.stderr.isatty():
            print(f"precaudit: {title}: {spec.job.steps} steps", file=sys.stderr, flush=True)
            return None
        return tqdm(total=spec.job.steps, desc=title, unit="step", leave=False, dynamic_ncols=True)
