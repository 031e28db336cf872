"""Energy that GPUs used, by their own totals: Volta and later count millijoules since the driver was loaded."""

from __future__ import annotations

from typing import Any

METHOD = "NVML total energy of the whole card, between two synchronised reads"
UNCOUNTED = "this GPU does not count energy"


class Meter:
    """Reads the totals of some GPUs; `counts` is false where one has none, and `method` says why."""

    def __init__(self, nvml: Any = None, *handles: Any, problem: str = "no GPU") -> None:
        self._nvml, self._handles = nvml, handles
        self.counts = bool(handles) and None not in self._totals()
        self.method = METHOD if self.counts else f"not measured: {UNCOUNTED if handles else problem}"

    def read(self) -> float | None:
        """Joules since the driver was loaded, of all together; None where one can't be read."""
        totals = self._totals() if self.counts else [None]
        known = [total for total in totals if total is not None]
        return sum(known) / 1000.0 if len(known) == len(totals) else None

    def _totals(self) -> list[int | None]:
        return [_total(self._nvml, handle) for handle in self._handles]


def _total(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError:
        return None
