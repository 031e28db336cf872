"""Tracing a sample of the steps of an existing training loop, in its own process."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from precaudit.instrument.events import TrainingEvents, TrainingListener, parameters_of
from precaudit.instrument.names import ModuleNames, fqns_of
from precaudit.instrument.patches import Shared, wrapped
from precaudit.instrument.scopes import ModuleScopes
from precaudit.instrument.torch_function import dtype_name, tensors_in
from precaudit.tracing.records import Trace
from precaudit.tracing.snapshot import snapshot
from precaudit.tracing.tracer import TraceOptions, Tracer

_LOG2_SCALE = "precaudit_log2_scale"
_eager = Shared(partial(torch.compiler.set_stance, "force_eager"))
"""The operations of compiled code can't be observed."""


def autocast_in_force() -> str | None:
    """The dtype of the active autocast region; None outside of one."""
    on = (device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device))
    return next((dtype_name(torch.get_autocast_dtype(device)) for device in on), None)


def is_rarer(number: int) -> bool:
    """Whether `number` is a power of eight (1, 8, 64, ...)."""
    return number & (number - 1) == 0 and number.bit_length() % 3 == 1


class Auditing(TrainingListener):
    """Installs hooks from `start` to `stop`, on modules in recorded steps only; `trace` may be called at any time.

    Steps are those of `optimizers` or, if none is given, of all optimizers with a parameter of the model; backward
    passes count where no optimizer steps. Local errors in `formats` are measured at the 1st, 8th, 64th ... recorded
    step, as each measurement costs as much as a step.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Any], every: int, formats: tuple[str, ...] = ()) -> None:
        self.name = type([module for module, fqn in fqns_of(model).items() if not fqn][-1]).__name__
        self.names = ModuleNames()
        self.names.add_model(model, "model")
        held = [parameter for optimizer in optimizers for parameter in parameters_of(optimizer)]
        self._parameters = {id(parameter) for parameter in held or model.parameters()}
        self.events = TrainingEvents(bool(optimizers), self._concerns)
        for optimizer in optimizers:
            self.events.know(optimizer)
        self.scopes = ModuleScopes(self.names, only=model)
        options = TraceOptions(
            audited=lambda step: step % every == 0,
            shadowed=lambda step: is_rarer(step // every + 1),
            formats=formats,
            per_step=every > 1,
            autocast=autocast_in_force,
        )
        self.tracer = Tracer(self.scopes, options)
        self.scopes.listeners += [self.events, self.tracer]
        self.events.listeners += [self.tracer, self]
        self._stack = ExitStack()
        self._following = ExitStack()
        self._follows = False
        self.running = self.scaled = False
        self._log2_scaled = 0

    @property
    def steps(self) -> int:
        return self.tracer.step

    def _concerns(self, optimizer: Any) -> bool:
        return any(id(parameter) in self._parameters for parameter in parameters_of(optimizer))

    def start(self) -> None:
        if not self.events.has_optimizer:
            for optimizer in filter(self._concerns, _existing_optimizers()):
                self.events.know(optimizer)
        self._stack.callback(self._follow, False)
        self._stack.enter_context(self.events.installed())
        for scaler in (torch.amp.GradScaler, *torch.amp.GradScaler.__subclasses__()):
            if "scale" in vars(scaler):
                self._stack.enter_context(wrapped(scaler, "scale", self._scaling))
        self.running = True
        self._stack.callback(self.tracer.remove)
        self._follow(self.tracer.recording)

    def stop(self) -> None:
        self.events.complete()
        self.running = False
        self._stack.close()

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> None:
        """The loss scale of the gradients: that of a root, or of what was scaled since the last backward pass."""
        known = [getattr(root, _LOG2_SCALE) for root in roots if hasattr(root, _LOG2_SCALE)]
        self.tracer.log2_scale = known[0] if known else self._log2_scaled
        self._log2_scaled = 0

    def step_complete(self, optimizer: Any) -> None:
        if self.scopes.current is None:
            self._follow(self.tracer.recording)

    def _follow(self, wanted: bool) -> None:
        """Install module hooks for recorded steps only, as they slow down every forward pass."""
        if wanted and not self._follows:
            self._following.enter_context(_eager)
            self._following.enter_context(self.scopes.installed())
        elif self._follows and not wanted:
            self._following.close()
        self._follows = wanted

    def trace(self) -> Trace:
        return snapshot(self.tracer, self.names)

    def _scaling(self, original: Callable[..., Any], scaler: torch.amp.GradScaler, outputs: Any) -> Any:
        """Notes the scale that a GradScaler applies, so that gradients are recorded unscaled (by the nearest power of
        two)."""
        result = original(scaler, outputs)
        self.scaled = self.scaled or scaler.is_enabled()
        if self.tracer.recording and scaler.is_enabled():
            self._log2_scaled = _log2(scaler.get_scale())
            for tensor in tensors_in(result):
                setattr(tensor, _LOG2_SCALE, self._log2_scaled)
        return result


def _log2(scale: float) -> int:
    """log2, rounded; 0 for the scale of a diverged training that is zero or infinite."""
    return round(math.log2(scale)) if 0 < scale < math.inf else 0


def _existing_optimizers() -> list[torch.optim.Optimizer]:
    """Optimizers created before the hooks were installed; torch has no list of them."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.optim.Optimizer)]
