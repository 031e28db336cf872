"""Loss scaling with the usual cost: one fused pass over an optimizer's gradients, like `torch.amp.GradScaler`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from precaudit.execution.loss_scaling import Scaling
from precaudit.instrument.events import parameters_of


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
            self.scale = max(self.scale / 2, 1.0)
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
