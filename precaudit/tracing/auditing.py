"""Tracing somebody's own training loop, in their process, sampled."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import nn

from precaudit.instrument.events import TrainingEvents
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import ModuleScopes
from precaudit.tracing.records import Trace
from precaudit.tracing.snapshot import snapshot
from precaudit.tracing.tracer import TraceOptions, Tracer


def autocast_in_force() -> str | None:
    """The dtype of the autocast region that is on, None where none is."""
    on = (device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device))
    return next((str(torch.get_autocast_dtype(device)).removeprefix("torch.") for device in on), None)


class Auditing:
    """Hooks on from `start` to `stop`; `trace` may be asked at any time."""

    def __init__(self, model: nn.Module, optimizer: Any, every: int) -> None:
        self.name = type(model).__name__
        self.names = ModuleNames()
        self.names.add_model(model, "model")
        self.events = TrainingEvents(has_optimizer=optimizer is not None)
        self.scopes = ModuleScopes(self.names, only=model)
        options = TraceOptions(audited=lambda step: step % every == 0, per_step=every > 1, autocast=autocast_in_force)
        self.tracer = Tracer(self.scopes, options)
        self.scopes.listeners.append(self.tracer)
        self.events.listeners.append(self.tracer)
        self._stack = ExitStack()

    @property
    def steps(self) -> int:
        return self.tracer.step

    def start(self) -> None:
        self._stack.enter_context(self.scopes.installed())
        self._stack.enter_context(self.events.installed())
        self._stack.enter_context(self._scale_known())
        self._stack.callback(self.tracer.remove)

    def stop(self) -> None:
        self._stack.close()

    def trace(self) -> Trace:
        return snapshot(self.tracer, self.names)

    def _scale_known(self) -> Any:
        """The loss scale in force, read where a GradScaler applies it, so that gradients are recorded un-scaled."""
        original = torch.amp.GradScaler.scale
        tracer = self.tracer

        def scale(scaler: torch.amp.GradScaler, outputs: Any) -> Any:
            if scaler.is_enabled():
                tracer.log2_scale = round(math.log2(scaler.get_scale()))
            return original(scaler, outputs)

        return mock.patch.object(torch.amp.GradScaler, "scale", scale)
