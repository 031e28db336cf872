"""Hard inputs derived from real ones: the same shapes and dtypes, other values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from precaudit.instrument.torch_function import floats_in, map_tensors, tensors_in

Call = tuple[Any, Any]
"""The positional and keyword arguments of a model's call."""


def copied(call: Call) -> Call:
    """A copy of the call: scripts reuse buffers, and modules work in place."""
    copy: Call = map_tensors(lambda tensor: tensor.detach().clone(), call)
    return copy


def length(call: Call) -> int:
    """The number of values in the largest sample, which grows with the sequence length."""
    return max((tensor.shape[1:].numel() for tensor in tensors_in(call) if tensor.dim() > 1), default=0)


def has_floats(call: Call) -> bool:
    return any(tensor.dim() for tensor in floats_in(call))


def scaled(call: Call, exponent: int) -> Call:
    """Floating-point inputs times 2**exponent."""
    return _floats(call, lambda x: torch.where(x.isfinite(), x * 2.0**exponent, x))


def zeros(call: Call) -> Call:
    """Floating-point inputs set to zero; without any, indices set to zero (usually padding)."""
    if has_floats(call):
        return _floats(call, torch.zeros_like)
    return _mapped(call, lambda x: x if _is_mask(x) else torch.zeros_like(x))


def _is_mask(x: torch.Tensor) -> bool:
    """Whether the input is a mask: boolean, or integers of ones and zeros."""
    return x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all())


def denormals(call: Call, smallest_normal: float) -> Call:
    """Floating-point inputs shrunk until their largest magnitude is half the smallest normal number."""
    return _floats(call, partial(_shrunk, largest=smallest_normal / 2))


def _shrunk(x: torch.Tensor, largest: float) -> torch.Tensor:
    wide = x.double()  # the factor itself may lie below float32's range
    finite = wide.isfinite()
    amax = torch.where(finite, wide.abs(), 0.0).max() if x.numel() else wide.sum()
    return torch.where(finite & (amax > 0), wide * (largest / amax), wide).to(x.dtype)


def first_sample(call: Call) -> Call | None:
    """All inputs with the batch dimension in front, cut to the first sample; None for a batch of one."""
    sizes = [tensor.shape[0] for tensor in tensors_in(call) if tensor.dim()]
    if not sizes or sizes[0] < 2:
        return None
    return _mapped(call, lambda x: x[:1] if x.shape[0] == sizes[0] else x)


def _floats(call: Call, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    return _mapped(call, lambda x: change(x) if x.is_floating_point() else x)


def _mapped(call: Call, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    """Apply a change to all inputs except scalar tensors, which are settings (a count, a temperature)."""
    changed: Call = map_tensors(lambda x: change(x) if x.dim() else x, call)
    return changed
