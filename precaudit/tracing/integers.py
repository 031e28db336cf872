"""Integer-valued inputs of products (positions, indices, counts), which a low format may alias."""

from __future__ import annotations

import math

import torch

from precaudit.histograms.memory import flat

EXACT_INTEGERS = 256.0
"""Integers up to here are exact in every half format."""

_COINCIDENCE = 16
"""How many fraction bits must be seen, all zero, before values count as integers by intention."""

_FINE = 32
"""Quantized measurements, such as grey values, have at least this ratio of standard deviation to rounding error."""


@torch.no_grad()
def integer_amax(tensors: list[torch.Tensor], least: float = EXACT_INTEGERS) -> float | None:
    """The largest magnitude in integer-valued inputs other than parameters; None where none exceeds `least`."""
    found = None
    trained = next((tensor for tensor in tensors if _is_trained(tensor)), None)
    for tensor in tensors:
        values = flat(tensor) if tensor.is_floating_point() and not _is_trained(tensor) else None
        if values is None or values.numel() < 2:
            continue
        amax = float(values.abs().max())
        if not (least < amax < math.inf and bool((values == values.round()).all())) or _whole_by_size(values):
            continue
        if trained is None or not _is_measured(tensor, channels=1 if trained.dim() > 2 else -1):
            found = max(found or 0.0, amax)
    return found


def _is_trained(tensor: torch.Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad


def _whole_by_size(values: torch.Tensor) -> bool:
    """Whether values may be integers by chance: float32 has no fractions above 2^23, so that large values have too few
    fraction bits to tell."""
    exponents = torch.frexp(values[values != 0].float()).exponent
    return int((24 - exponents).clamp(min=0).sum()) < _COINCIDENCE


def _is_measured(tensor: torch.Tensor, channels: int) -> bool:
    """Whether the input of a trained layer is a quantized measurement, such as an image: in every channel it varies so
    much that bfloat16's rounding is small beside that, and a weighted sum of it needs no resolution of one."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dim() < 2:
        return False
    values = tensor.float().movedim(channels, -1).flatten(0, -2)
    error = (values - values.bfloat16()).square().mean(0).sqrt()
    return bool((error * _FINE <= values.std(0)).all())
