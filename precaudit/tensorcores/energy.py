"""Energy that a GPU used, by its own total: Volta and later count millijoules since the driver was loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METHOD = "NVML total energy of the whole card, between two synchronised reads"
UNCOUNTED = "this GPU does not count energy"


@dataclass(frozen=True)
class Energy:
    """`joules` of the whole card, what it draws when idle included; None where it was not measured."""

    joules: float | None
    method: str


class Meter:
    """Reads the total of one GPU; `counts` is false where there is no total, and `method` says why."""

    def __init__(self, nvml: Any = None, handle: Any = None, problem: str = "no GPU") -> None:
        self._nvml, self._handle = nvml, handle
        self.counts = handle is not None and _total(nvml, handle) is not None
        self.method = METHOD if self.counts else f"not measured: {problem if handle is None else UNCOUNTED}"

    def read(self) -> float | None:
        """Joules since the driver was loaded."""
        total = _total(self._nvml, self._handle) if self.counts else None
        return None if total is None else total / 1000.0


def energy_of(work: Callable[[], None], synchronize: Callable[[], None], nvml: Any, handle: Any) -> Energy:
    """The energy between two reads with the GPU at rest at both. The total is refreshed some ten times a second:
    `work` should take seconds."""
    synchronize()
    before = _total(nvml, handle)
    work()
    synchronize()
    after = _total(nvml, handle)
    if before is None or after is None:
        return Energy(None, f"not measured: {UNCOUNTED}")
    return Energy((after - before) / 1000.0, METHOD)


def _total(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError:
        return None
