"""The histogram kernel against a copy of the same tensor: bytes read per second over the copy's bytes moved."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import torch
from stage import Setting, main, median_seconds, wait

from precaudit.histograms import Accumulator, Addition, add_all

SMALL, MANY = 1024 * 768, 150


def measure(setting: Setting) -> dict[str, Any]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    if not setting.dry:
        from precaudit.histograms.gpu import check

        for dtype in (*dtypes, torch.float64):  # raises where torch would count instead
            check(dtype, torch.device("cuda", torch.cuda.current_device()))
    of_dtype = {str(dtype).removeprefix("torch."): _of(dtype, setting) for dtype in dtypes}
    return {**of_dtype, "small": _small(setting)}


def _of(dtype: torch.dtype, setting: Setting) -> dict[str, Any]:
    size = setting.size(256 * 2**20, 2**20)
    normal = torch.randn(size // dtype.itemsize, device=setting.device)
    others = {
        "relu": normal.clamp(min=0),
        "squares": normal.square() * 1e-9,
        "40 binades": torch.exp2(torch.rand_like(normal) * 40 - 30),
    }
    values = normal.to(dtype)
    target, accumulator = torch.empty_like(values), Accumulator()
    accumulator.add(values)
    wait(setting)
    copy = median_seconds(lambda: target.copy_(values), setting)
    count = median_seconds(lambda: accumulator.add(values), setting)
    return {
        "bytes": size,
        "copy_gb_per_s": 2 * size / copy / 1e9,
        "histogram_gb_per_s": size / count / 1e9,
        "share_of_copy_bandwidth": copy / count / 2,
        "share_for_other_values": {
            name: copy / 2 / median_seconds(partial(accumulator.add, other.to(dtype)), setting)
            for name, other in others.items()
        },
        "histogram_seconds": count,
    }


def _small(setting: Setting) -> dict[str, Any]:
    """What a training step has: many tensors of some megabytes, one by one and together."""
    tensors = [torch.randn(setting.size(SMALL, 100), device=setting.device) for _ in range(setting.size(MANY, 3))]
    slots = [Accumulator() for _ in tensors]

    def one_by_one() -> None:
        for slot, tensor in zip(slots, tensors, strict=True):
            slot.add(tensor)

    def together() -> None:
        add_all(Addition(slot, tensor) for slot, tensor in zip(slots, tensors, strict=True))

    return {
        "tensors": len(tensors),
        "numel": tensors[0].numel(),
        "seconds": {"one by one": median_seconds(one_by_one, setting), "together": median_seconds(together, setting)},
        "seconds_until_launched": {"one by one": _host(one_by_one, setting), "together": _host(together, setting)},
    }


def _host(work: Any, setting: Setting) -> float:
    """Seconds until all is launched: what the training loop waits for at most."""
    taken = []
    for _ in range(10):
        wait(setting)
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[5]


if __name__ == "__main__":
    sys.exit(main("histograms", measure))
