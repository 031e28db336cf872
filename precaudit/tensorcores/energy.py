"""Energy that a GPU used, by its own total: Volta and later count millijoules since the driver was loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Energy:
    """`joules` of the whole card, what it draws when idle included; None where it was not measured."""

    joules: float | None
    method: str


def energy_of(work: Callable[[], None], synchronize: Callable[[], None], nvml: Any, handle: Any) -> Energy:
    """The energy between two reads with the GPU at rest at both. The total is refreshed some ten times a second:
    `work` should take seconds."""
    synchronize()
    before = _total(nvml, handle)
    work()
    synchronize()
    after = _total(nvml, handle)
    if before is None or after is None:
        return Energy(None, "not measured: this GPU does not count energy")
    return Energy((after - before) / 1000.0, "NVML total energy of the whole card, between two synchronised reads")


def _total(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError:
        return None
