"""Whole numbers among a product's inputs: positions, indices and counts, which a format may not tell apart."""

from __future__ import annotations

import torch

from precaudit.histograms.memory import flat

TOLD_APART = 256.0
"""Whole numbers up to here are exact in every half format."""

_COINCIDENCE = 16
"""Fraction bits, all zero, that have been seen before values count as whole by intention."""

_FINE = 32
"""What is measured in whole steps, as grey values are, varies by this many times the error of its rounding, or more."""


@torch.no_grad()
def integer_amax(tensors: list[torch.Tensor], least: float = TOLD_APART) -> float | None:
    """Largest magnitude of the integer-valued inputs that are no parameters; None where none is above `least`."""
    found = None
    trained = next((tensor for tensor in tensors if _is_trained(tensor)), None)
    for tensor in tensors:
        values = flat(tensor) if tensor.is_floating_point() and not _is_trained(tensor) else None
        if values is None or values.numel() < 2:
            continue
        amax = float(values.abs().max())
        if not (least < amax < float("inf") and bool((values == values.round()).all())) or _whole_by_size(values):
            continue
        if trained is None or not _is_measured(tensor, channels=1 if trained.dim() > 2 else -1):
            found = max(found or 0.0, amax)
    return found


def _is_trained(tensor: torch.Tensor) -> bool:
    return tensor.is_leaf and tensor.requires_grad


def _whole_by_size(values: torch.Tensor) -> bool:
    """Whether values are whole because float32 has no fractions above 2^23: the bits that could have told otherwise
    are too few to exclude chance."""
    exponents = torch.frexp(values[values != 0].float()).exponent
    return int((24 - exponents).clamp(min=0).sum()) < _COINCIDENCE


def _is_measured(tensor: torch.Tensor, channels: int) -> bool:
    """Whether what a layer with trained weights is given varies so much in every channel that bfloat16 hardly shows, as
    the pixels of an image do: a weighted sum of such needs no step of one. Frequencies make angles of positions."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dim() < 2:
        return False
    values = tensor.float().movedim(channels, -1).flatten(0, -2)
    error = (values - values.bfloat16()).square().mean(0).sqrt()
    return bool((error * _FINE <= values.std(0)).all())
