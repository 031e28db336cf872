"""Custom operations of libraries with their own autocast kernels, as torchvision's."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch._ops import OpOverload

from precaudit.instrument.torch_function import Call, overloads_of

_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


class PlanAutocast(torch.autocast):
    """An autocast region of a plan. It keeps torch's methods where those of `torch.autocast` are patched, so that a
    script's regions are disabled and a plan's are not."""

    __init__ = torch.autocast.__init__
    __enter__ = torch.autocast.__enter__
    __exit__ = torch.autocast.__exit__


def own_region(call: Call, dtype: torch.dtype) -> PlanAutocast | None:
    """The autocast region for a library's operation with its own autocast kernel; None for other operations."""
    overloads = overloads_of(call.func)
    device = next((tensor.device.type for tensor in call.given), "") if overloads else ""
    brings = device in _KEYS and any(_brings_autocast(each, _KEYS[device]) for each in overloads)
    return PlanAutocast(device, dtype=dtype) if brings else None


@lru_cache(maxsize=1024)
def _brings_autocast(op: OpOverload, key: str) -> bool:
    return op.namespace != "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)
