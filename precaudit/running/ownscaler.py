"""A script's own GradScaler where it is in force: its factor enters as a gradient, and the loss stays the loss.

The gradients are those that `outputs * scale` has. The value is the one that the float32 run has too, whatever is made
of it before the backward pass: sums, lists, losses of several scalers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from precaudit.instrument.torchfunction import map_tensors

FACTOR = "precaudit_factor"
"""The attribute of a scaled loss that has its factor."""


@contextmanager
def scaled_in_gradients() -> Iterator[None]:
    """Until the block ends, `GradScaler.scale` scales gradients only."""
    original = torch.amp.GradScaler.scale

    def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
        listed = outputs if isinstance(outputs, (torch.Tensor, list, tuple)) else list(outputs)
        return map_tensors(partial(_scaled, scaler, original), listed) if scaler.is_enabled() else outputs

    with mock.patch.object(torch.amp.GradScaler, "scale", scale):
        yield


def _scaled(scaler: torch.amp.GradScaler, original: Callable[..., torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """What needs no gradient is scaled as it stands: its value is what the script wants of it."""
    scaled = original(scaler, output)
    if not output.requires_grad:
        return scaled
    value, factor = output.to(scaled.dtype, copy=True), scaler.get_scale()
    value.register_hook(lambda gradient: gradient * factor)
    setattr(value, FACTOR, factor)
    return value
