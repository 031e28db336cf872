"""One product in several formats: its class by name beside the GPU's own counters (GPM), its rate and its energy."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from stage import Setting, main, median_seconds, wait

from precaudit.hardware.counters import Pipes
from precaudit.hardware.energy import Meter
from precaudit.hardware.nvml import handle_of, library, session
from precaudit.tensorcores.traces.runtime import profiled_steps

FORMATS = {
    "float32": ("highest", torch.float32),
    "tf32": ("high", torch.float32),
    "bfloat16": ("highest", torch.bfloat16),
    "float16": ("highest", torch.float16),
    "float8": ("highest", torch.float8_e4m3fn),
}


def measure(setting: Setting) -> dict[str, Any]:
    nvml, lacks_float8 = library(), not setting.dry and torch.cuda.get_device_capability() < (8, 9)
    formats = {name: kind for name, kind in FORMATS.items() if not (lacks_float8 and name == "float8")}
    with nullcontext("dry run") if setting.dry else session(nvml) as problem:
        found = {name: _of(precision, dtype, setting, nvml, problem) for name, (precision, dtype) in formats.items()}
    return {**found, "failures": [] if setting.dry else _wrong(found)}


def _wrong(found: dict[str, Any]) -> list[str]:
    """Products whose class by name is not what their format says."""
    classes = {name: {kernel["class"] for kernel in result["kernels"]} for name, result in found.items()}
    return [
        f"the {name} product's kernels are {', '.join(sorted(kinds)) or 'not seen'}"
        for name, kinds in classes.items()
        if (name == "float32") == bool(kinds & {"native", "legacy"}) or not kinds
    ]


def _of(precision: str, dtype: torch.dtype, setting: Setting, nvml: Any, problem: str) -> dict[str, Any]:
    torch.set_float32_matmul_precision(precision)
    size = setting.size(4096, 64)
    left, right = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    one = torch.ones((), device=setting.device)

    def multiply() -> torch.Tensor:
        if dtype.itemsize > 1:
            return left @ right
        return torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)

    seconds = median_seconds(multiply, setting)
    with profiled_steps() as recording:
        multiply()
    kernels = [{"name": k.name, "class": k.tensor_core, "rule": k.rule} for k in recording.tensor_cores.kernels]
    counted = {"problem": problem} if problem else _counted(multiply, setting, nvml)
    return {"tflops": 2 * size**3 / seconds / 1e12, "kernels": kernels, **counted}


def _counted(work: Callable[[], Any], setting: Setting, nvml: Any) -> dict[str, Any]:
    def for_a_second() -> None:
        until = time.perf_counter() + 1.0
        while time.perf_counter() < until:
            for _ in range(20):
                work()
            wait(setting)

    try:
        handle = handle_of(nvml, str(torch.cuda.get_device_properties(0).uuid))
    except nvml.NVMLError as error:
        return {"problem": str(error)}
    pipes = Pipes(nvml, handle)
    with pipes.watching() as tensor:
        for_a_second()
    counters = {"measured": tensor.share is not None, "method": pipes.method, "tensor": tensor.share}
    return {"counters": counters, "energy": _energy(for_a_second, setting, Meter(nvml, handle))}


def _energy(work: Callable[[], None], setting: Setting, meter: Meter) -> dict[str, Any]:
    """With the GPU at rest at both reads; the total is refreshed some ten times a second."""
    wait(setting)
    before = meter.read()
    work()
    wait(setting)
    after = meter.read()
    return {"joules": None if before is None or after is None else after - before, "method": meter.method}


if __name__ == "__main__":
    sys.exit(main("counters", measure))
