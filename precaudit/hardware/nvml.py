"""Access to NVML, NVIDIA's management library, which machines without its driver lack."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def library() -> Any:
    import pynvml

    return pynvml


@contextmanager
def session(nvml: Any) -> Iterator[str]:
    """Initialize NVML in this block; yields the reason why it can't be used, empty if it can."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        yield str(error)
        return
    try:
        yield ""
    finally:
        nvml.nvmlShutdown()


def handle_of(nvml: Any, uuid: str) -> Any:
    """The handle of torch's device by its UUID: NVML counts devices that CUDA_VISIBLE_DEVICES hides from torch."""
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def text(value: Any) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def equal_gpus(nvml: Any, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that CUDA may use, by the names that CUDA_VISIBLE_DEVICES has for them; none where they differ, for
    what ran on one would not be comparable with what ran on another, or are parts of one."""
    models = _models(nvml)
    chosen = environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(models)))))
    gpus = tuple(name.strip() for name in chosen.split(",") if name.strip())
    whole = all(name.isdigit() or name.startswith("GPU-") for name in gpus)
    return gpus if len(set(models)) == 1 and whole else ()


def _models(nvml: Any) -> list[str]:
    """The name of every GPU's model; none where they can't be told."""
    try:
        with session(nvml) as problem:
            handles = [] if problem else [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            return [text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    except nvml.NVMLError:
        return []
