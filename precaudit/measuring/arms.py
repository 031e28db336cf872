"""Applies an arm of a timed run to the script's models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from precaudit.execution.apply import Applied
from precaudit.execution.emulated import to_float32
from precaudit.execution.native import autocast_for
from precaudit.execution.products import tf32
from precaudit.instrument.names import fqns_of
from precaudit.measuring.records import Arm
from precaudit.model import Plan
from precaudit.planning.fitting import fit_names, part_of


@contextmanager
def engaged(arm: Arm, models: Mapping[str, nn.Module], device: str) -> Iterator[None]:
    """Apply the arm to these models, named as in the plan, in this block."""
    with ExitStack() as stack:
        stack.enter_context(tf32(arm.tf32))
        for name, model in models.items():
            if arm.plan is not None:
                stack.enter_context(_applied(arm.plan, name, model))
            elif arm.half is not None:
                stack.enter_context(WholeModel(model, arm.half, device))
        yield


def _applied(plan: Plan, name: str, model: nn.Module) -> Applied:
    """Apply the plan as `precaudit.apply` does, so that its overhead is measured too."""
    return Applied(model, part_of(plan, fit_names(plan, set(fqns_of(model).values()), name)), native=True)


class WholeModel:
    """One autocast region around a model's forward, outputs back in float32: AMP as it is usually switched on."""

    def __init__(self, model: nn.Module, half: str, device: str) -> None:
        self._half, self._device = half, device
        self._regions: list[AbstractContextManager[Any]] = []
        self._handles = (
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        )

    def _enter(self, module: nn.Module, args: Any) -> None:
        region = autocast_for(self._half, self._device)
        region.__enter__()
        self._regions.append(region)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._regions:
            self._regions.pop().__exit__(None, None, None)
        return to_float32(output)

    def __enter__(self) -> WholeModel:
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        while self._regions:
            self._regions.pop().__exit__(None, None, None)
