"""One live line on stderr while runs go on; plain lines where stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from precaudit.running.job import RunResult, RunSpec


class RunProgress:
    """Called with every partial result; a run is a bar of its steps with tqdm's own ETA."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._current: tuple[str, int] | None = None
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, spec: RunSpec, partial: RunResult) -> None:
        if (spec.label, spec.seed) != self._current:
            self._current = (spec.label, spec.seed)
            self._start(spec)
        if self._bar is not None:
            self._bar.update(partial.steps - self._bar.n)

    def _start(self, spec: RunSpec) -> None:
        title = f"{spec.label}, seed {spec.seed}"
        if not sys.stderr.isatty():
            print(f"precaudit: {title}: {spec.job.steps} steps", file=sys.stderr, flush=True)
            return
        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(total=spec.job.steps, desc=title, unit="step", leave=False, dynamic_ncols=True)
