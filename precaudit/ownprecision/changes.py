"""How much a script changes its gradients itself, between the backward pass and the scaler or in hooks of parameters.
The relative change does not depend on the loss scale unless it uses an absolute threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.torch_function import energy, stored
from precaudit.ownprecision.records import Misuse, OwnPrecision, Relative
from precaudit.tracing.ops import script_location

_MOST = 32
"""How many scaled losses are observed: an unlucky scaler skips its first dozen steps, and a step may have several
losses."""
_NOISE = 1e-6
_FACTOR = 4.0
"""Changes differ if one is this many times the other: between batches they vary somewhat."""

Change = tuple[float, float, float]
"""Energies (sums of squares): of the change, of the gradient after it, and before it."""


class GradientChanges(TrainingListener):
    """Records `changed_by` and `hooked_by`, and where the first of these hooks was registered (`hooks`)."""

    def __init__(self, names: ModuleNames, own: OwnPrecision) -> None:
        self._names, self._own = names, own
        self._before: dict[int, torch.Tensor] = {}
        self._seen: dict[int, Relative | None] = {}
        self._scaled = 0
        self._hooked: list[Change] = []

    def installed(self) -> AbstractContextManager[None]:
        scaler = torch.amp.GradScaler
        return all_wrapped(
            (scaler, "scale", self._scaling),
            (scaler, "unscale_", self._unscaling),
            (scaler, "step", self._unscaling),
            (torch.Tensor, "register_hook", self._hooking),
        )

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        hooked, self._hooked = self._hooked, []
        if (by := _relative(hooked)) is not None:
            self._own.hooked_by = by
        trained = self._names.parameters() if 0 < self._scaled <= _MOST else ()
        self._before = {id(p): stored(p.grad).clone() for p in trained if p.grad is not None}

    def _scaling(self, original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
        self._scaled += 1
        return original(scaler, outputs)

    def _unscaling(self, original: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if self._seen.setdefault(id(optimizer), None) is None:
            self._seen[id(optimizer)] = self._changed(optimizer)
            self._own.changed_by = list(self._seen.values())
        return original(scaler, optimizer, *args, **kwargs)

    def _hooking(self, original: Callable[..., Any], tensor: torch.Tensor, hook: Callable[..., Any]) -> Any:
        if not (tensor.is_leaf and tensor.requires_grad):
            return original(tensor, hook)
        place = script_location()

        def watched(gradient: torch.Tensor) -> Any:
            made = hook(gradient)
            if isinstance(made, torch.Tensor) and self._scaled and self._own.hooked_by is None:
                self._own.misuses.setdefault("hooks", Misuse(place))
                self._hooked.append(_change(gradient, made))
            return made

        return original(tensor, watched)

    def _changed(self, optimizer: Any) -> Relative | None:
        """The change of an optimizer's gradients; None where it is not yet known."""
        stepped = [p for p in parameters_of(optimizer) if p.grad is not None]
        pairs = [(stored(p.grad), self._before[id(p)]) for p in stepped if id(p) in self._before]
        pairs = [(now, before) for now, before in pairs if now.shape == before.shape]
        return _relative([_change(before, now) for now, before in pairs])


def _change(before: torch.Tensor, now: torch.Tensor) -> Change:
    return energy(now - before), energy(now), energy(before)


def _relative(changes: Sequence[Change]) -> Relative | None:
    change, left, whole = (sum(each) for each in zip(*changes, strict=True)) if changes else (0.0, 0.0, 0.0)
    return ((change / whole) ** 0.5, (left / whole) ** 0.5) if whole and math.isfinite(whole + change) else None


def depends_on_scale(without: Sequence[Relative | None], scaled: Sequence[Relative | None]) -> bool | None:
    """Whether relative changes differ with and without a loss scale; None where no change is known."""
    pairs = [(a, b) for a, b in zip(without, scaled, strict=False) if a is not None and b is not None]
    known = [sorted(sizes) for pair in pairs for sizes in zip(*pair, strict=True)]
    return any(large > _NOISE and large > _FACTOR * small for small, large in known) if known else None
