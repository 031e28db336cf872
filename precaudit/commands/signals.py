"""Signals that interrupt a command: its runs stop, and their measurements are kept."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

from precaudit.running.child_process import SIGNALS
from precaudit.running.children import ChildRunner


def handle_signals(runner: ChildRunner) -> None:
    """Interrupt the runs at SIGINT, SIGTERM and SIGHUP, the latter unless it is ignored, as under `nohup`."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, Interrupt(runner))


class Interrupt:
    """Signal handler that ends the runs only: what they measured is still planned, printed and written.

    Repeated signals within `_patience_seconds` count as one, as a terminal or supervisor may send several.
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
