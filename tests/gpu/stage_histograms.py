"""The histogram kernel against a copy of the same tensor: bytes read per second over the copy's bytes moved."""

from __future__ import annotations

import sys
from typing import Any

import torch
from stage import Setting, main, median_seconds, wait

from precaudit.histograms import Accumulator


def measure(setting: Setting) -> dict[str, Any]:
    return {str(dtype).removeprefix("torch."): _of(dtype, setting) for dtype in (torch.float32, torch.bfloat16)}


def _of(dtype: torch.dtype, setting: Setting) -> dict[str, Any]:
    size = setting.size(256 * 2**20, 2**20)
    values = torch.randn(size // dtype.itemsize, device=setting.device).to(dtype)
    target, accumulator = torch.empty_like(values), Accumulator()
    accumulator.add(values)
    if accumulator.stats().numel != values.numel():
        raise AssertionError("the kernel lost values")
    wait(setting)
    copy = median_seconds(lambda: target.copy_(values), setting)
    count = median_seconds(lambda: accumulator.add(values), setting)
    return {
        "bytes": size,
        "copy_gb_per_s": 2 * size / copy / 1e9,
        "histogram_gb_per_s": size / count / 1e9,
        "share_of_copy_bandwidth": copy / count / 2,
        "histogram_seconds": count,
    }


if __name__ == "__main__":
    sys.exit(main("histograms", measure))
