"""Misuse of a loss scaler: a loss that `scaler.scale` never saw but whose gradients are unscaled, and clipping or
optimizer steps on gradients that are still scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.nn import utils

from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.graph import nodes_of
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.patches import all_wrapped, set_to
from precaudit.instrument.torch_function import map_tensors, stored, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.records import Misuse, MisuseKind, OwnPrecision
from precaudit.tracing.ops import script_location

_SCALED, _PLAIN, _UPDATED = "scaled", "plain", "updated"
Written = tuple[torch.Tensor, int]
"""A parameter's `.grad` and its version counter."""
Which = Callable[[torch.Tensor], bool]


class ScaledGradients(TrainingListener):
    """Records misuses of a scaler, also in float32 runs, since the calls of a disabled scaler show as much.

    - `unscaled_loss`: a loss that was never scaled, whose gradients the scaler unscales nevertheless.
    - `clips_scaled`, `steps_scaled`: clipping, or an optimizer's own step, on gradients that are still scaled.
      `steps_again`: its own step on gradients that the scaler's has used.
    - `adds_scaled`: a scaled loss adds to gradients that are already unscaled. `unscaled_before`: a scaler steps on
      gradients that arrived after it had unscaled others.
    - `scales_twice`: a loss computed from a scaled one is scaled. `other_scaler`: another scaler unscales than the one
      that scaled. `updated_between`: its scale was updated between the two. `made_anew`: a new scaler is created in
      every step.
    - `changes_scaled`: the script writes to gradients before they are unscaled; `unscales_twice`: it has read the scale
      since the backward pass, and so may have unscaled them itself.
    """

    def __init__(self, names: ModuleNames, own: OwnPrecision) -> None:
        self._names, self._own, self._misuses = names, own, own.misuses
        self._kinds: dict[int, dict[str, Location | None]] = {}
        self._written: dict[int, Written] = {}
        self._used: dict[int, Written] = {}
        self._scalers: dict[int, Any] = {}
        self._unscaled: set[int] = set()
        self._called: set[tuple[Any, int]] = set()
        self._arrived: Any = None
        self._asked = self._asked_after = self._by_hand = self._in_scaler = False
        self._steps = 0
        self._made_at = -1

    def installed(self) -> AbstractContextManager[None]:
        scaler = torch.amp.GradScaler
        return all_wrapped(
            (scaler, "__init__", self._making),
            (scaler, "scale", self._scaling),
            (scaler, "get_scale", self._asking),
            (scaler, "unscale_", self._unscaling_first),
            (scaler, "step", self._stepping),
            (scaler, "update", self._updating),
            (utils, "clip_grad_norm_", self._clipping),
            (utils, "clip_grad_value_", self._clipping),
        )

    @property
    def _concerned(self) -> bool:
        return self._own.grad_scaler is not None

    # ---- the scaler

    def _making(self, original: Callable[..., None], scaler: Any, *args: Any, **kwargs: Any) -> None:
        original(scaler, *args, **kwargs)
        if self._concerned and 0 <= self._made_at == self._steps - 1:
            self._misuses.setdefault("made_anew", Misuse(script_location()))
        self._made_at = self._steps

    def _scaling(self, original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
        if not self._concerned:
            return original(scaler, outputs)
        if not self._steps and any(_is_made_of_scaled(loss) for loss in tensors_in(outputs)):
            self._misuses.setdefault("scales_twice", Misuse(script_location()))
        return map_tensors(partial(self._marked, scaler), original(scaler, outputs))

    def _marked(self, scaler: Any, scaled: torch.Tensor) -> torch.Tensor:
        """Mark a copy of the loss: a disabled scaler returns the loss itself, which the script may use elsewhere."""
        if not scaled.requires_grad:
            return scaled
        scaled = scaled.view_as(scaled)
        scaled.register_hook(lambda gradient: setattr(self, "_arrived", scaler))
        node: Any = scaled.grad_fn
        node.metadata[_SCALED] = True
        return scaled

    def _asking(self, original: Callable[..., Any], scaler: Any) -> Any:
        self._asked = self._asked_after = True
        return original(scaler)

    def _unscaling(self, original: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        function = type(optimizer).__name__
        self._note(parameters_of(optimizer), _PLAIN, "unscaled_loss", function)
        changed: MisuseKind = "unscales_twice" if self._asked_after else "changes_scaled"
        self._note(parameters_of(optimizer), _SCALED, changed, function, self._changed)
        others = [p for p in parameters_of(optimizer) if self._scalers.get(id(p), scaler) is not scaler]
        self._note(others, _SCALED, "other_scaler", function)
        self._note(parameters_of(optimizer), _UPDATED, "updated_between", function)
        for parameter in parameters_of(optimizer):
            self._kinds.pop(id(parameter), None)
            self._unscaled.add(id(parameter))
        with set_to(self, "_in_scaler", True):
            return original(scaler, optimizer, *args, **kwargs)

    def _unscaling_first(self, original: Callable[..., None], scaler: Any, optimizer: Any) -> None:
        if not self._in_scaler:
            self._called.add((scaler, id(optimizer)))
        self._unscaling(original, scaler, optimizer)

    def _stepping(self, original: Callable[..., Any], scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """`step` unscales what `unscale_` has not, once between two updates."""
        if (scaler, id(optimizer)) in self._called and "adds_scaled" not in self._misuses:
            self._note(parameters_of(optimizer), _SCALED, "unscaled_before", type(optimizer).__name__)
        result = self._unscaling(original, scaler, optimizer, *args, **kwargs)
        self._used |= _gradients(parameters_of(optimizer))
        return result

    def _updating(self, original: Callable[..., None], scaler: Any, *args: Any, **kwargs: Any) -> None:
        self._called = {(each, number) for each, number in self._called if each is not scaler}
        for number, kinds in self._kinds.items():
            if _SCALED in kinds and self._scalers.get(number) is scaler:
                kinds[_UPDATED] = script_location()
        original(scaler, *args, **kwargs)

    # ---- training

    def _clipping(self, original: Callable[..., Any], parameters: Any, *args: Any, **kwargs: Any) -> Any:
        """Clipping writes to gradients without unscaling them. An infinite limit changes none: the script only measures
        their norm."""
        clipped = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        limit = next(iter(args), kwargs.get("max_norm", kwargs.get("clip_value", 0.0)))
        if float(limit) < math.inf:
            self._note_scaled(clipped, "clips_scaled", original.__name__)
        untouched = list(filter(self._untouched, clipped))
        norm = original(clipped, *args, **kwargs)
        self._written |= _gradients(untouched)
        return norm

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        if not self._concerned:
            return
        factors = any(gradient is not None for gradient in gradients)
        multiplied = any("Mul" in type(root.grad_fn).__name__ for root in roots)
        self._by_hand = factors or (self._asked and multiplied)
        self._arrived = None
        self._used = {}
        self._written = _gradients(self._trained())
        for parameter in self._trained():
            if parameter.grad is None or not bool(stored(parameter.grad).any()):
                self._kinds.pop(id(parameter), None)
                self._unscaled.discard(id(parameter))

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        scaler = self._arrived
        if not self._concerned or (self._by_hand and scaler is None):
            return
        kind, place = _PLAIN if scaler is None else _SCALED, script_location()
        for parameter in self._trained():
            if parameter.grad is None or self._untouched(parameter):
                continue
            self._kinds.setdefault(id(parameter), {})[kind] = place
            if scaler is not None:
                self._scalers[id(parameter)] = scaler
                if id(parameter) in self._unscaled:
                    self._misuses.setdefault("adds_scaled", Misuse(place))
        self._written = _gradients(self._trained())
        self._asked_after = False

    def gradients_ready(self, optimizer: Any) -> None:
        if optimizer is not None and not self._in_scaler:
            function = type(optimizer).__name__
            self._note_scaled(parameters_of(optimizer), "steps_scaled", function)
            if self._concerned and any(_is_untouched(p, self._used) for p in parameters_of(optimizer)):
                self._misuses.setdefault("steps_again", Misuse(script_location(), function))

    def step_ended(self, optimizer: Any) -> None:
        if optimizer is not None:
            self._unscaled.difference_update(map(id, parameters_of(optimizer)))

    def step_complete(self, optimizer: Any) -> None:
        self._asked = False
        self._steps += 1

    def _trained(self) -> Iterator[torch.Tensor]:
        return (p for p in self._names.parameters() if p.requires_grad)

    def _untouched(self, parameter: torch.Tensor) -> bool:
        return _is_untouched(parameter, self._written)

    def _changed(self, parameter: torch.Tensor) -> bool:
        """Whether the gradient was written to or replaced since the backward pass."""
        return id(parameter) in self._written and parameter.grad is not None and not self._untouched(parameter)

    def _note_scaled(self, parameters: list[torch.Tensor], misuse: MisuseKind, function: str) -> None:
        if not self._asked_after:
            self._note(parameters, _SCALED, misuse, function)

    def _note(
        self, parameters: list[torch.Tensor], kind: str, misuse: MisuseKind, function: str, which: Which | None = None
    ) -> None:
        if not self._concerned or misuse in self._misuses:
            return
        for parameter in parameters:
            kinds = self._kinds.get(id(parameter), {})
            if kind in kinds and (which or self._untouched)(parameter):
                place = script_location() if kind == _SCALED else kinds[kind]
                self._misuses[misuse] = Misuse(place, function, len(kinds) > 1)
                return


def _is_made_of_scaled(loss: torch.Tensor) -> bool:
    """Whether the loss's graph contains a scaled loss. It walks the whole graph, so it is used in the first step
    only."""
    return any(_SCALED in node.metadata for node in nodes_of([loss]))


def _is_untouched(parameter: torch.Tensor, written: Mapping[int, Written]) -> bool:
    known, gradient = written.get(id(parameter)), parameter.grad
    return known is not None and gradient is known[0] and gradient._version == known[1]


def _gradients(parameters: Iterable[torch.Tensor]) -> dict[int, Written]:
    return {id(p): (p.grad, p.grad._version) for p in parameters if p.grad is not None}
