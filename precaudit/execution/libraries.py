"""Custom operations of libraries with their own autocast kernels, as torchvision's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from precaudit.instrument.torchfunction import Call

_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class PlanAutocast(torch.autocast):
    """An autocast region of a plan. It keeps torch's methods where those of `torch.autocast` are patched, so that a
    script's regions are disabled and a plan's are not."""

    __init__ = torch.autocast.__init__
    __enter__ = torch.autocast.__enter__
    __exit__ = torch.autocast.__exit__


def own_region(call: Call, dtype: torch.dtype) -> PlanAutocast | None:
    """The autocast region for a library's operation with its own autocast kernel; None for other operations."""
    if not isinstance(call.func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return None
    device = next((tensor.device.type for tensor in call.given), "")
    return PlanAutocast(device, dtype=dtype) if _brings_autocast(call.func, device) else None


@lru_cache(maxsize=1024)
def _brings_autocast(func: Any, device: str) -> bool:
    overloads = (
        [func] if isinstance(func, torch._ops.OpOverload) else [getattr(func, name) for name in func.overloads()]
    )
    return device in _KEYS and any(
        op.namespace != "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _KEYS[device])
        for op in overloads
    )
