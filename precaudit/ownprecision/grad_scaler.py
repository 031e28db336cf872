"""A script's own GradScaler in a run as written: it scales the gradients, and leaves the loss's value alone.

The gradients are those of `outputs * scale`. The value can be compared with the float32 run's, whatever the script
makes of it before the backward pass: sums, lists, losses of several scalers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.torchfunction import map_tensors
from precaudit.model import Location
from precaudit.tracing.ops import caller_location, line_of

FACTOR = "precaudit_factor"
"""The attribute of a scaled loss that has its factor."""
_LEAST = 2.0**7


class OwnScaler:
    """Notes in `settings["penalizes_scaled"]` the loss whose gradients a script takes in order to differentiate them
    again, as a gradient penalty does, without dividing them by the scale: as far as is seen, because nobody asks for
    the scale before the next loss is scaled."""

    def __init__(self, settings: dict[str, object]) -> None:
        self._settings = settings
        self._factor = torch.amp.GradScaler.get_scale
        self._taken: Location | None = None

    @contextmanager
    def scaled_in_gradients(self) -> Iterator[None]:
        """Until the block ends, `GradScaler.scale` scales gradients only."""
        scaler = torch.amp.GradScaler
        with all_wrapped((scaler, "scale", self._scaling), (scaler, "get_scale", self._asking)):
            yield

    def _scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            if not scaler.is_enabled():
                return outputs
            self._note()
            listed = outputs if isinstance(outputs, (torch.Tensor, list, tuple)) else list(outputs)
            return map_tensors(partial(self._scaled, scaler, original), listed)

        return scale

    def _asking(self, original: Callable[..., float]) -> Callable[..., float]:
        def get_scale(scaler: torch.amp.GradScaler) -> float:
            self._taken = None
            return original(scaler)

        return get_scale

    def _note(self) -> None:
        if self._taken is not None:
            self._settings["penalizes_scaled"] = line_of(self._taken)
        self._taken = None

    def _scaled(self, scaler: torch.amp.GradScaler, original: Callable[..., Any], output: torch.Tensor) -> torch.Tensor:
        """What needs no gradient is scaled as it stands: its value is what the script wants of it."""
        scaled: torch.Tensor = original(scaler, output)
        if not output.requires_grad:
            return scaled
        value, factor, place = output.to(scaled.dtype, copy=True), self._factor(scaler), caller_location()

        def arrived(gradient: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                self._taken = place
            return gradient * factor

        value.register_hook(arrived)
        setattr(value, FACTOR, factor)
        return value


def multiplied_by(root: torch.Tensor) -> float:
    """The number that a script has multiplied a loss by before its backward pass; 0 where it hasn't."""
    if "Mul" not in type(root.grad_fn).__name__:  # a divisor is saved by the same name
        return 0.0
    saved = (getattr(root.grad_fn, name, None) for name in ("_saved_other", "_saved_self"))
    factor = next((each for each in saved if each is not None), None)
    if isinstance(factor, torch.Tensor):
        return float(factor) if factor.numel() == 1 else 0.0
    return factor or 0.0


def scale_by_hand(root: torch.Tensor) -> float:
    """The loss scale that a script keeps itself, which is a large power of two; 1 where it has none."""
    factor = multiplied_by(root)
    return factor if factor >= _LEAST and math.frexp(factor)[0] == 0.5 else 1.0
