"""Tensor Core utilisation by the GPU's own counters: NVML GPM, on Hopper and later, for the whole device.

GPM has no counter for float8 products; bfloat16 and TF32 count as HMMA. Other processes on the device count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "tensor": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
        "hmma": "NVML_GPM_METRIC_HMMA_TENSOR_UTIL",
        "dmma": "NVML_GPM_METRIC_DMMA_TENSOR_UTIL",
        "imma": "NVML_GPM_METRIC_IMMA_TENSOR_UTIL",
        "dram": "NVML_GPM_METRIC_DRAM_BW_UTIL",
        "fp64": "NVML_GPM_METRIC_FP64_UTIL",
        "fp32": "NVML_GPM_METRIC_FP32_UTIL",
        "fp16": "NVML_GPM_METRIC_FP16_UTIL",
    }
)
METHOD = "GPM counters of the whole device"


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
    def watching(self) -> Iterator[dict[str, float]]:
        """Shares of the time in the block in which each pipe was busy, which are there when it is over; none where they
        can't be read."""
        shares: dict[str, float] = {}
        samples: list[Any] = []
        try:
            self._take(samples)
            yield shares
            self._take(samples)
            if self.counts:
                shares.update(self._guarded(lambda: _shares(self._nvml, samples)) or {})
        finally:
            for sample in samples:
                self._nvml.nvmlGpmSampleFree(sample)

    def _take(self, samples: list[Any]) -> None:
        if self.counts:
            self._guarded(lambda: samples.append(self._nvml.nvmlGpmSampleAlloc()))
        if self.counts:
            self._guarded(lambda: self._nvml.nvmlGpmSampleGet(self._handle, samples[-1]))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """What is refused once is not asked for again."""
        try:
            return call()
        except self._nvml.NVMLError as error:
            self.counts, self.method = False, f"not measured: GPM counters refused ({error})"
            return None


def _shares(nvml: Any, samples: list[Any]) -> dict[str, float]:
    """The counters that the GPU returned, those it doesn't have left out."""
    query = nvml.c_nvmlGpmMetricsGet_t()
    query.version = nvml.NVML_GPM_METRICS_GET_VERSION
    query.numMetrics = len(METRICS)
    query.sample1, query.sample2 = samples
    for i, constant in enumerate(METRICS.values()):
        query.metrics[i].metricId = getattr(nvml, constant)
    nvml.nvmlGpmMetricsGet(query)
    found = zip(METRICS, query.metrics, strict=False)
    return {name: metric.value / 100.0 for name, metric in found if metric.nvmlReturn == nvml.NVML_SUCCESS}
