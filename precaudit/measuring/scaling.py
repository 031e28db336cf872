"""Loss scaling with the usual cost: one fused pass over an optimizer's gradients, like `torch.amp.GradScaler`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from precaudit.instrument.events import TrainingListener


class FusedScaler(TrainingListener):
    """Scales the loss, unscales just before the optimizer's step, and skips steps with non-finite gradients.

    The script doesn't know, so that its own changes of gradients (clipping) see scaled ones: fine for timing, but for
    nothing else.
    """

    def __init__(self, scale: float, parameters: Callable[[], Iterable[torch.Tensor]]) -> None:
        """`parameters` are the parameters to unscale where the script has no optimizer."""
        self.scale = scale
        self.skipped = 0
        self._parameters = parameters
        self._withheld: list[tuple[torch.Tensor, torch.Tensor]] = []

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any]:
        return [
            torch.full_like(root, self.scale) if gradient is None else gradient * self.scale
            for root, gradient in zip(roots, gradients, strict=True)
        ]

    def step_starts(self, optimizer: Any) -> None:
        groups = optimizer.param_groups if optimizer is not None else [{"params": self._parameters()}]
        owned = [(p, p.grad) for group in groups for p in group["params"] if p.grad is not None]
        if not owned or not self._overflowed([gradient for _, gradient in owned]):
            return
        self.scale = max(self.scale / 2, 1.0)
        self.skipped += 1
        self._withheld = owned
        for parameter, _ in owned:
            parameter.grad = None

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

    def step_ended(self, optimizer: Any) -> None:
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld = []
