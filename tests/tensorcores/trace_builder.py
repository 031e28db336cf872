"""Small traces in the shape that torch.profiler writes, for tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

H100 = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "computeMajor": 9, "computeMinor": 0}
NVJET = "nvjet_tst_128x128_64x4_1x2_h_bz_coopA_NNT"
SGEMM = "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(Params)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
Event = dict[str, Any]


def span(category: str, name: str, start: float, duration: float, thread: int = 1, **arguments: Any) -> Event:
    args = {key.replace("_", " "): value for key, value in arguments.items()}
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 1,
        "tid": thread,
        "ts": start,
        "dur": duration,
        "args": args,
    }


def op(name: str, start: float, duration: float, thread: int = 1, **arguments: Any) -> Event:
    return span("cpu_op", name, start, duration, thread, **arguments)


def module(name: str, start: float, duration: float, thread: int = 1) -> Event:
    return span("python_function", f"nn.Module: {name}", start, duration, thread)


def launched(name: str, at: float, duration: float, correlation: int, thread: int = 1) -> list[Event]:
    """A kernel and the call that launched it."""
    call = span("cuda_runtime", "cudaLaunchKernel", at, 1, thread, correlation=correlation)
    kernel = span("kernel", name, at + 5, duration, 7, correlation=correlation, device=0)
    return [call, kernel | {"pid": 0}]


def mm(start: float, duration: float, m: int, n: int, k: int, kind: str = "c10::BFloat16", **arguments: Any) -> Event:
    event = op("aten::mm", start, duration, **arguments)
    event["args"] |= {
        "Input Dims": [[m, k], [k, n]],
        "Input type": [kind, kind],
        "Input Strides": [[k, 1], [1, k]],
        "Concrete Inputs": ["", ""],
    }
    return event


def document(events: list[Any], device: Event | None = H100, **metadata: Any) -> dict[str, Any]:
    properties = {"deviceProperties": [device]} if device else {}
    return {"schemaVersion": 1, **properties, "traceEvents": events, **metadata}


def write(folder: Path, content: Any, name: str = "trace.json", indent: int | None = 1) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content, indent=indent).encode()
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path
