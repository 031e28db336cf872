"""Signals that end a command: its runs stop, and what they had measured is kept."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

from precaudit.running.children import SIGNALS, ChildRunner


def heed_signals(runner: ChildRunner) -> None:
    """A terminal that is closed interrupts as well, unless `nohup` or the like has asked for silence."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, Interrupt(runner))


class Interrupt:
    """Ends the runs, and nothing else: what they measured is still planned, printed and written.

    One interrupt, however often the signal arrives: a terminal or a supervisor may send it to every process.
    """

    _patience_seconds = 3.0

    def __init__(self, runner: ChildRunner) -> None:
        self._runner = runner
        self._last = -math.inf

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if now - self._last > self._patience_seconds:
            self._last = now
            self._runner.interrupt()
