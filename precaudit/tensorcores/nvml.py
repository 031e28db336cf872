"""NVML, NVIDIA's management library: opened for a moment, absent on machines without its driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def library() -> Any:
    import pynvml

    return pynvml


@contextmanager
def session(nvml: Any) -> Iterator[str]:
    """NVML for a while; yields why it can't be used, empty where it can."""
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
