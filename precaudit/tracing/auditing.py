"""Tracing somebody's own training loop, in their process, sampled."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import nn

from precaudit.instrument.events import TrainingEvents, TrainingListener
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.tracing.records import Trace
from precaudit.tracing.snapshot import snapshot
from precaudit.tracing.tracer import TraceOptions, Tracer


def autocast_in_force() -> str | None:
    """The dtype of the autocast region that is on, None where none is."""
    on = (device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device))
    return next((str(torch.get_autocast_dtype(device)).removeprefix("torch.") for device in on), None)


class Auditing(TrainingListener):
    """Hooks on from `start` to `stop`, those of modules in recorded steps only; `trace` may be asked at any time."""

    def __init__(self, model: nn.Module, optimizer: Any, every: int) -> None:
        self.name = type(model).__name__
        self.names = ModuleNames()
        self.names.add_model(model, "model")
        self.events = TrainingEvents(has_optimizer=optimizer is not None)
        self.scopes = ModuleScopes(self.names, only=model)
        options = TraceOptions(audited=lambda step: step % every == 0, per_step=every > 1, autocast=autocast_in_force)
        self.tracer = Tracer(self.scopes, options)
        self.scopes.listeners.append(self.tracer)
        self.events.listeners += [self.tracer, self]
        self._stack = ExitStack()
        self._following = ExitStack()
        self._follows = False

    @property
    def steps(self) -> int:
        return self.tracer.step

    def start(self) -> None:
        self._stack.callback(self._follow, False)
        self._stack.enter_context(self.events.installed())
        self._stack.enter_context(self._scale_known())
        self._stack.callback(self.tracer.remove)
        self._follow(self.tracer.recording)

    def stop(self) -> None:
        self._stack.close()

    def step_ended(self, optimizer: Any) -> None:
        if self.scopes.current is None:
            self._follow(self.tracer.recording)

    def _follow(self, wanted: bool) -> None:
        """Hooks on every module slow all forwards down, so they are on only where they are wanted."""
        if wanted and not self._follows:
            self._following.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code shows no operation
            self._following.enter_context(self.scopes.installed())
        elif self._follows and not wanted:
            self._following.close()
        self._follows = wanted

    def trace(self) -> Trace:
        return snapshot(self.tracer, self.names)

    def _scale_known(self) -> Any:
        """The loss scale in force, read where a GradScaler applies it, so that gradients are recorded un-scaled."""
        original = torch.amp.GradScaler.scale
        tracer = self.tracer

        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            if tracer.recording and scaler.is_enabled():
                tracer.log2_scale = round(math.log2(scaler.get_scale()))
            return original(scaler, outputs)

        return mock.patch.object(torch.amp.GradScaler, "scale", scale)
