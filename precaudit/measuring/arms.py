"""Applies an arm of a timed run to the script's models, with loss scaling at its usual cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from precaudit.execution.apply import Applied
from precaudit.execution.kernels import to_float32
from precaudit.execution.loss_scaling import SMALLEST, Scaling
from precaudit.execution.native import autocast_for
from precaudit.execution.products import tf32
from precaudit.instrument.events import parameters_of
from precaudit.instrument.names import fqns_of
from precaudit.measuring.records import Arm
from precaudit.model import Plan
from precaudit.model.fitting import fit_names, part_of


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


class FusedScaler(Scaling):
    """Scales the loss, unscales just before the optimizer's step, and skips steps with non-finite gradients.

    The script doesn't know, so that its own changes of gradients (clipping) see scaled ones: fine for timing, but for
    nothing else.
    """

    def __init__(self, scale: float, parameters: Callable[[], Iterable[torch.Tensor]]) -> None:
        """`parameters` are the parameters to unscale where the script has no optimizer."""
        super().__init__(scale)
        self.skipped = 0
        self._parameters = parameters

    def gradients_ready(self, optimizer: Any) -> None:
        parameters = list(self._parameters()) if optimizer is None else parameters_of(optimizer)
        if self._overflowed([parameter.grad for parameter in parameters if parameter.grad is not None]):
            self.scale = max(self.scale / 2, SMALLEST)
            self.skipped += 1
            self.withhold(parameters)

    def _overflowed(self, gradients: Sequence[torch.Tensor]) -> bool:
        places: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for gradient in gradients:
            values = gradient._values() if gradient.is_sparse else gradient
            places.setdefault((values.device, values.dtype), []).append(values.detach())
        found = []
        for (device, _), alike in places.items():
            flag, inverse = torch.zeros(1, device=device), torch.full((1,), 1 / self.scale, device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(alike, flag, inverse)
            found.append(flag)
        return any(flag.item() for flag in found)
