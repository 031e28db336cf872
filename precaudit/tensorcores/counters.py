"""Tensor Core utilisation by the GPU's own counters: NVML GPM, on Hopper and later, for the whole device.

GPM has no counter for float8 products; bfloat16 and TF32 count as HMMA. Other processes on the device count too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
SHORTEST = 0.5  # seconds between the two samples; GPM averages over no less than 0.1


@dataclass(frozen=True)
class Counters:
    """Shares in [0, 1] of `seconds` in which each pipe was busy; `method` says why where nothing was measured."""

    measured: bool
    method: str
    seconds: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)


def count(nvml: Any, handle: Any, work: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> Counters:
    """Repeat `work`, which must wait for the GPU, for half a second or more, and read what was busy meanwhile."""
    samples: list[Any] = []
    try:
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return Counters(False, "not measured: this GPU has no GPM counters (Hopper and later have)")
        samples += [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        nvml.nvmlGpmSampleGet(handle, samples[0])
        seconds = _repeat(work, clock)
        nvml.nvmlGpmSampleGet(handle, samples[1])
        shares = _shares(nvml, samples)
    except nvml.NVMLError as error:
        return Counters(False, f"not measured: GPM counters refused ({error})")
    finally:
        for sample in samples:
            nvml.nvmlGpmSampleFree(sample)
    if not shares:
        return Counters(False, "not measured: GPM returned no counter")
    return Counters(True, "GPM counters of the whole device", seconds, shares)


def _repeat(work: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    while True:
        work()
        if (elapsed := clock() - start) >= SHORTEST:
            return elapsed


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
