"""Transparent loss scaling: an unmodified script trains under a loss scale it never sees.

The scale enters as the gradient of what `backward` is called on and leaves in a hook on every leaf, before
the leaf accumulates, so clipping, accumulation, closures and double backward work on unscaled gradients.
With a power of two both are exact. A non-finite leaf gradient makes the next step of its optimizer a skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from precaudit.instrument.events import TrainingListener
from precaudit.model import LossScale

_SMALLEST, _LARGEST = 2.0**-24, 2.0**40


def leaves_of(roots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The leaf tensors that a backward pass from `roots` would accumulate into."""
    pending = [root.grad_fn for root in roots if root is not None and root.grad_fn is not None]
    seen = set(pending)
    leaves = []
    while pending:
        node = pending.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            leaves.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves


class LossScaler(TrainingListener):
    """Applies `settings` like `torch.amp.GradScaler`: halve at a skip, double after `growth_interval` good steps."""

    def __init__(self, settings: LossScale) -> None:
        self.scale = settings.init_scale or 1.0
        self.skipped: list[int] = []
        self.scales: list[float] = []
        self._interval = settings.growth_interval if settings.mode == "dynamic" else None
        self._dynamic = settings.mode == "dynamic"
        self._good_steps = 0
        self._step = 0
        self._handles: list[RemovableHandle] = []
        self._gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._bad: dict[int, torch.Tensor] = {}
        self._withheld: list[tuple[torch.Tensor, torch.Tensor]] = []

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any]:
        for leaf in leaves_of(roots):
            self._handles.append(leaf.register_hook(self._unscaler(leaf)))
        return [
            torch.full_like(root, self.scale) if gradient is None else gradient * self.scale
            for root, gradient in zip(roots, gradients, strict=True)
        ]

    def _unscaler(self, leaf: torch.Tensor) -> Any:
        inverse = 1.0 / self.scale

        def unscale(gradient: torch.Tensor) -> torch.Tensor:
            self._gradients.append((leaf, gradient.detach()))
            return gradient * inverse

        return unscale

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self.remove()
        dense = [g.coalesce().values() if g.is_sparse else g for _, g in self._gradients]
        kept = [(leaf, g) for (leaf, _), g in zip(self._gradients, dense, strict=True) if g.numel()]
        self._gradients = []
        if not kept:
            return
        norms = torch.stack([n.to(kept[0][1].device) for n in torch._foreach_norm([g for _, g in kept], float("inf"))])
        for (leaf, _), finite in zip(kept, norms.isfinite().tolist(), strict=True):
            if not finite:
                self._bad[id(leaf)] = leaf

    def step_starts(self, optimizer: Any) -> None:
        """A skipped step: the optimizer finds no gradients; without an optimizer the gradients become zero."""
        if optimizer is None:
            skip = bool(self._bad)
            for leaf in self._bad.values():
                if leaf.grad is not None:
                    leaf.grad.zero_()
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            skip = any(id(p) in self._bad for p in parameters)
            if skip:
                self._withheld = [(p, p.grad) for p in parameters if p.grad is not None]
                for parameter in parameters:
                    parameter.grad = None
                    self._bad.pop(id(parameter), None)
        if skip:
            self.skipped.append(self._step)
        self._adapt(skip)

    def _adapt(self, skipped: bool) -> None:
        if not self._dynamic:
            return
        self._good_steps = 0 if skipped else self._good_steps + 1
        if skipped:
            self.scale = max(self.scale / 2, _SMALLEST)
        elif self._interval and self._good_steps % self._interval == 0:
            self.scale = min(self.scale * 2, _LARGEST)

    def step_ended(self, optimizer: Any) -> None:
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld = []
        if optimizer is None:
            self._bad.clear()
        self.scales.append(self.scale)
        self._step += 1

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
