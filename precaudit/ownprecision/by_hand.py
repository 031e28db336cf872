"""A loss scale that a script applies by hand. It stays on in every run: only the script can take it out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn import utils

from precaudit.instrument.events import TrainingListener
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.torch_function import stored
from precaudit.ownprecision.grad_scaler import scale_by_hand
from precaudit.ownprecision.records import Misuse, OwnPrecision
from precaudit.tracing.ops import script_location

_SAME = 1e-3


class ScaledByHand(TrainingListener):
    """Records the first scale, and the line where a scaled loss adds to gradients that were divided by the scale since
    the previous backward pass, and will be divided by it again (`adds_by_hand`), or where gradients are clipped that
    are divided by the scale afterwards (`clips_by_hand`)."""

    def __init__(self, names: ModuleNames, own: OwnPrecision) -> None:
        self._names, self._own = names, own
        self._norm, self._scale = 0.0, 1.0
        self._clipped: tuple[float, Misuse] | None = None

    def installed(self) -> AbstractContextManager[None]:
        return all_wrapped((utils, "clip_grad_norm_", self._clipping), (utils, "clip_grad_value_", self._clipping))

    def _clipping(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A clipping that changes the gradients just as the backward pass has left them."""
        scaled = self._scale > 1 and math.isclose(self._size(), self._norm, rel_tol=_SAME)
        norm = original(*args, **kwargs)
        if scaled and 0 < (size := self._size()) < (1 - _SAME) * self._norm:
            self._clipped = size, Misuse(script_location(), original.__name__)
        return norm

    def gradients_ready(self, optimizer: Any) -> None:
        if self._clipped is not None:
            size, misuse = self._clipped
            if math.isclose(self._size() * self._scale, size, rel_tol=_SAME):
                self._own.misuses.setdefault("clips_by_hand", misuse)
        self._clipped = None

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        before, scale = self._norm, self._scale
        self._scale = max((scale_by_hand(root) for root in roots if root is not None), default=1.0)
        if self._scale > 1 and self._own.scaled_by_hand is None:
            self._own.scaled_by_hand = self._scale
        if before and 1 < scale == self._scale and math.isclose(self._size() * scale, before, rel_tol=_SAME):
            self._own.misuses.setdefault("adds_by_hand", Misuse(script_location()))

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self._norm = self._size() if self._scale > 1 else 0.0

    def _size(self) -> float:
        """The norm of the first gradient: those of all would cost one more pass over them."""
        trained = (p.grad for p in self._names.parameters() if p.grad is not None)
        gradient = next(trained, None)
        return 0.0 if gradient is None else float(stored(gradient).norm())
