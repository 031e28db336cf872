"""How much a script changes its gradients itself, between the backward pass and the scaler or in hooks of parameters.
The relative change does not depend on the loss scale unless it uses an absolute threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.patches import all_wrapped
from precaudit.instrument.torchfunction import stored
from precaudit.ownprecision.state import energy
from precaudit.tracing.ops import line_of, script_location

BETWEEN, IN_HOOKS = "changed_by", "hooked_by"
_MOST = 32
"""How many scaled losses are observed: an unlucky scaler skips its first dozen steps, and a step may have several
losses."""
_NOISE = 1e-6
_FACTOR = 4.0
"""Changes differ if one is this many times the other: between batches they vary somewhat."""

Change = tuple[float, float, float]
"""Energies (sums of squares): of the change, of the gradient after it, and before it."""
Relative = tuple[float, float]
"""The change, and the gradient after it, relative to the gradient before it (rms)."""


class GradientChanges(TrainingListener):
    """Records relative changes (rms), each the first finite one, and so on the initial weights.

    - `settings["changed_by"]`: between the backward pass and the scaler, by optimizer in the order of first steps.
    - `settings["hooked_by"]`: in hooks of parameters; `settings["hooks"]` is where the first of these was registered.
    """

    def __init__(self, names: ModuleNames, settings: dict[str, object]) -> None:
        self._names, self._settings = names, settings
        self._before: dict[int, torch.Tensor] = {}
        self._seen: dict[int, Relative | None] = {}
        self._scaled = 0
        self._hooked: list[Change] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        scaler = torch.amp.GradScaler
        self._settings[BETWEEN] = []
        with all_wrapped(
            (scaler, "scale", self._scaling),
            (scaler, "unscale_", self._unscaling),
            (scaler, "step", self._unscaling),
            (torch.Tensor, "register_hook", self._hooking),
        ):
            yield

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        hooked, self._hooked = self._hooked, []
        if (by := _relative(hooked)) is not None:
            self._settings[IN_HOOKS] = [by]
        trained = self._names.parameters() if 0 < self._scaled <= _MOST else ()
        self._before = {id(p): stored(p.grad).clone() for p in trained if p.grad is not None}

    def _scaling(self, original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
        self._scaled += 1
        return original(scaler, outputs)

    def _unscaling(self, original: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if self._seen.setdefault(id(optimizer), None) is None:
            self._seen[id(optimizer)] = self._changed(optimizer)
            self._settings[BETWEEN] = list(self._seen.values())
        return original(scaler, optimizer, *args, **kwargs)

    def _hooking(self, original: Callable[..., Any], tensor: torch.Tensor, hook: Callable[..., Any]) -> Any:
        if not (tensor.is_leaf and tensor.requires_grad):
            return original(tensor, hook)
        place = script_location()

        def watched(gradient: torch.Tensor) -> Any:
            made = hook(gradient)
            if isinstance(made, torch.Tensor) and self._scaled and IN_HOOKS not in self._settings:
                self._settings.setdefault("hooks", line_of(place))
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


def depends_on_scale(without: Mapping[str, Any], scaled: Mapping[str, Any], kind: str = BETWEEN) -> bool | None:
    """Whether the relative change differs with and without a loss scale; None where no change is known."""
    pairs = zip(without.get(kind, []), scaled.get(kind, []), strict=False)
    known = [sorted(sizes) for pair in pairs if None not in pair for sizes in zip(*pair, strict=True)]
    return any(large > _NOISE and large > _FACTOR * small for small, large in known) if known else None
