"""The state a run ended in: what is not finite, and how the models answer their last batch in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torchfunction import tensors_in
from precaudit.running.job import EndState
from precaudit.running.modes import eval_mode

_SAMPLE = 256


class LastCalls:
    """A scope listener: keeps the last training call of every model, one batch each."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[nn.Module, Any, Any]] = {}

    def entered(self, frame: Frame) -> None: ...

    def left(self, frame: Frame, output: Any) -> Any:
        if frame.is_outermost and output is not None and torch.is_grad_enabled() and frame.module.training:
            self.calls[f"{frame.name.model}.{frame.name.fqn}".rstrip(".")] = (frame.module, *frame.call)
        return output


def _nonfinite(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, ...]:
    real = ((name, t) for name, t in named if not is_lazy(t) and t.is_floating_point() and not t.is_meta)
    return tuple(name for name, t in real if not bool(t.detach().isfinite().all()))


def end_state(
    names: ModuleNames, optimizers: Iterable[Any], calls: Mapping[str, tuple[nn.Module, Any, Any]]
) -> EndState:
    models = names.models
    several = len(models) > 1

    def named(kind: str) -> Iterable[tuple[str, torch.Tensor]]:
        for name, model in models.items():
            for fqn, tensor in getattr(model, f"named_{kind}")():
                yield (f"{name}.{fqn}" if several else fqn), tensor

    states = [
        (f"{type(optimizer).__name__}.{key}", value)
        for optimizer in optimizers
        for state in getattr(optimizer, "state", {}).values()
        if hasattr(state, "items")
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]
    outputs = {name: _evaluate(*call) for name, call in calls.items()}
    kept = {name: values for name, values in outputs.items() if values is not None}
    return EndState(
        parameters=_nonfinite(named("parameters")),
        buffers=_nonfinite(named("buffers")),
        optimizer_state=tuple(sorted(set(_nonfinite(states)))),
        evaluations={name: (bool(v.isfinite().all()), float(v.square().mean().sqrt())) for name, v in kept.items()},
        samples={name: tuple(v[:: max(1, len(v) // _SAMPLE)][:_SAMPLE].tolist()) for name, v in kept.items()},
    )


@torch.no_grad()
def _evaluate(module: nn.Module, args: Any, kwargs: Any) -> torch.Tensor | None:
    """All floating-point outputs in eval mode, flat; None where the model can't be called again."""
    try:
        with eval_mode(module):
            outputs = [t.float().flatten().cpu() for t in tensors_in(module(*args, **kwargs)) if t.is_floating_point()]
    except (Exception, SystemExit):
        return None
    flat = torch.cat(outputs) if outputs else torch.empty(0)
    return flat if flat.numel() else None
