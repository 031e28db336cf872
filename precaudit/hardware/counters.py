"""Tensor Core utilisation by the GPU's own counters: NVML GPM, on Hopper and later, for the whole device.

Other processes on the device count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

METHOD = "GPM counters of the whole device"


@dataclass
class Busy:
    """The share of time in a block with busy Tensor Cores; set at its end, if it was read."""

    share: float | None = None


class Pipes:
    """One GPU's counters; `counts` is false where they can't be read, and `method` says why."""

    def __init__(self, nvml: Any = None, handle: Any = None, problem: str = "no GPU") -> None:
        self._nvml, self._handle = nvml, handle
        refusal = problem if handle is None else self._refusal()
        self.counts = not refusal
        self.method = f"not measured: {refusal}" if refusal else METHOD

    def _refusal(self) -> str:
        try:
            supported = self._nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice
        except self._nvml.NVMLError as error:
            return f"GPM counters refused ({error})"
        return "" if supported else "this GPU has no GPM counters (Hopper and later have)"

    @contextmanager
    def watching(self) -> Iterator[Busy]:
        busy = Busy()
        samples: list[Any] = []
        try:
            self._take(samples)
            yield busy
            self._take(samples)
            if self.counts:
                busy.share = self._guarded(lambda: _tensor_share(self._nvml, samples))
        finally:
            for sample in samples:
                self._nvml.nvmlGpmSampleFree(sample)

    def _take(self, samples: list[Any]) -> None:
        if self.counts:
            self._guarded(lambda: samples.append(self._nvml.nvmlGpmSampleAlloc()))
        if self.counts:
            self._guarded(lambda: self._nvml.nvmlGpmSampleGet(self._handle, samples[-1]))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Call NVML; after a refusal the counters are not read again."""
        try:
            return call()
        except self._nvml.NVMLError as error:
            self.counts, self.method = False, f"not measured: GPM counters refused ({error})"
            return None


def _tensor_share(nvml: Any, samples: list[Any]) -> float | None:
    """None where the GPU doesn't have the counter, or nothing was counted."""
    query = nvml.c_nvmlGpmMetricsGet_t()
    query.version, query.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, 1
    query.sample1, query.sample2 = samples
    metric = query.metrics[0]
    metric.metricId = nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
    nvml.nvmlGpmMetricsGet(query)
    known = metric.nvmlReturn == nvml.NVML_SUCCESS and isfinite(metric.value)
    return float(metric.value) / 100.0 if known else None
