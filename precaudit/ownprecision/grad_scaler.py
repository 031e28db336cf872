"""A script's own GradScaler in a run as written: it scales gradients, but not the value of the loss.

Gradients are those of `outputs * scale`, while the value stays comparable with the float32 run's, whatever the script
computes from it before the backward pass (sums, lists, losses of several scalers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.torch_function import map_tensors
from precaudit.model import Location
from precaudit.ownprecision.records import OwnPrecision
from precaudit.tracing.ops import script_location

FACTOR = "precaudit_factor"
"""Attribute of a scaled loss: its factor."""
_LEAST = 2.0**7


class OwnScaler:
    """Records as `penalizes_scaled` a loss whose scaled gradients are computed with (by a gradient penalty or an inner
    step) without a division by the scale: the script never reads the scale before the next loss is scaled."""

    def __init__(self, own: OwnPrecision) -> None:
        self._own = own
        self._factor = torch.amp.GradScaler.get_scale
        self._taken: Location | None = None
        self._takes = False

    def scaled_in_gradients(self) -> AbstractContextManager[None]:
        """In this block `GradScaler.scale` scales gradients only, on a machine without CUDA too."""
        scaler = torch.amp.GradScaler
        return all_wrapped(
            (scaler, "__init__", _kept_without_gpu),
            (scaler, "scale", self._scaling),
            (scaler, "get_scale", self._asking),
            (scaler, "step", self._stepping),
            (torch.autograd, "grad", self._taking),
        )

    def _scaling(self, original: Callable[..., Any], scaler: torch.amp.GradScaler, outputs: Any) -> Any:
        if not scaler.is_enabled():
            return outputs
        self._note()
        listed = outputs if isinstance(outputs, (torch.Tensor, list, tuple)) else list(outputs)
        return map_tensors(partial(self._scaled, scaler, original), listed)

    def _asking(self, original: Callable[..., float], scaler: torch.amp.GradScaler) -> float:
        self._taken = None
        return original(scaler)

    def _stepping(self, original: Callable[..., Any], scaler: Any, *args: Any, **kwargs: Any) -> Any:
        self._own.scaler_steps += 1
        return original(scaler, *args, **kwargs)

    def _taking(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What it returns is in no `.grad`, where a scaler would find it."""
        self._takes = True
        try:
            return original(*args, **kwargs)
        finally:
            self._takes = False

    def _note(self) -> None:
        if self._taken is not None:
            self._own.penalizes_scaled = self._taken
        self._taken = None

    def _scaled(self, scaler: torch.amp.GradScaler, original: Callable[..., Any], output: torch.Tensor) -> torch.Tensor:
        """An output without gradient is really scaled, since the script can only be interested in its value."""
        scaled: torch.Tensor = original(scaler, output)
        if not output.requires_grad:
            return scaled
        value, factor, place = output.to(scaled.dtype, copy=True), self._factor(scaler), script_location()

        def arrived(gradient: torch.Tensor) -> torch.Tensor:
            if self._takes or torch.is_grad_enabled():
                self._taken = place
            return gradient * factor

        value.register_hook(arrived)
        setattr(value, FACTOR, factor)
        return value


def _kept_without_gpu(
    original: Callable[..., None], scaler: Any, device: str = "cuda", *args: Any, **kwargs: Any
) -> None:
    """On a machine without CUDA torch disables scalers for it, where the script's autocast regions are emulated."""
    original(scaler, "cpu" if device == "cuda" and not torch.cuda.is_available() else device, *args, **kwargs)


def multiplied_by(root: torch.Tensor) -> float:
    """The number by which the script has multiplied a loss just before its backward pass; 0 if it hasn't."""
    if "Mul" not in type(root.grad_fn).__name__:  # DivBackward saves its divisor by the same name
        return 0.0
    saved = (getattr(root.grad_fn, name, None) for name in ("_saved_other", "_saved_self"))
    factor = next((each for each in saved if each is not None), None)
    if isinstance(factor, torch.Tensor):
        return float(factor) if factor.numel() == 1 else 0.0
    return factor or 0.0


def scale_by_hand(root: torch.Tensor) -> float:
    """The loss scale that a script applies by hand, a large power of two; 1 without one."""
    factor = multiplied_by(root)
    return factor if factor >= _LEAST and math.frexp(factor)[0] == 0.5 else 1.0
