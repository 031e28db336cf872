"""Energy that a GPU used, by its own total: Volta and later count millijoules since the driver was loaded."""

from __future__ import annotations

from typing import Any

METHOD = "NVML total energy of the whole card, between two synchronised reads"
UNCOUNTED = "this GPU does not count energy"


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


def _total(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError:
        return None
