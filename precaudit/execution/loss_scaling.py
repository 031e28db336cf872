"""Transparent loss scaling: an unmodified script trains under a loss scale it never sees.

The scale enters as the gradient of what `backward` is called on and leaves in a hook on every leaf, before
the leaf accumulates, so clipping, accumulation, closures and double backward work on unscaled gradients.
With a power of two both are exact. A non-finite leaf gradient makes the next step of its optimizer a skip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.graph import nodes_of
from precaudit.instrument.torch_function import stored
from precaudit.model import LossScale, Plan

SCALED = "precaudit_scaled"
"""Attribute of a loss that the script has scaled with its own scaler, which is disabled while this one is active."""
SMALLEST, _LARGEST = 2.0**-24, 2.0**40


def leaves_of(roots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The leaf tensors that a backward pass from `roots` would accumulate into."""
    roots = [root for root in roots if root is not None]
    leaves = [root for root in roots if root.is_leaf and root.requires_grad]
    return leaves + [node.variable for node in nodes_of(roots) if node.name() == "torch::autograd::AccumulateGrad"]


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nn.Parameter)


def _register_first(leaf: torch.Tensor, hook: Callable[..., torch.Tensor | None]) -> RemovableHandle:
    """Register a hook that runs before those of the script, which expect unscaled gradients."""
    handle = leaf.register_hook(hook)
    hooks: Any = leaf._backward_hooks
    for key in [key for key in hooks if key != handle.id]:
        hooks[key] = hooks.pop(key)
    return handle


def _peak(gradient: torch.Tensor) -> torch.Tensor:
    """A scalar that is finite if and only if all values are. The gradient itself is not kept, to save memory."""
    values = stored(gradient.detach())
    return torch.linalg.vector_norm(values, math.inf) if values.numel() else values.new_zeros(())


def _not_finite(peaks: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """The leaves with a non-finite gradient, with one synchronization with the device."""
    if not peaks:
        return []
    finite = torch.stack([peak.double().to(peaks[0][1].device) for _, peak in peaks]).isfinite().tolist()
    return [leaf for (leaf, _), good in zip(peaks, finite, strict=True) if not good]


def scaler_for(plan: Plan | None) -> LossScaler | None:
    """The scaler that a plan needs; None without a plan, or for one that needs none."""
    return LossScaler(plan.loss_scale) if plan is not None and plan.loss_scale.mode != "none" else None


class Scaling(TrainingListener):
    """Multiplies losses by `scale`, and can withhold gradients from a step of an optimizer, which skips it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._withheld: list[tuple[torch.Tensor, torch.Tensor]] = []

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any]:
        return [
            torch.full_like(root, self.scale) if gradient is None else gradient * self.scale
            for root, gradient in zip(roots, gradients, strict=True)
        ]

    def withhold(self, parameters: Iterable[torch.Tensor]) -> None:
        self._withheld = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter, _ in self._withheld:
            parameter.grad = None

    def step_ended(self, optimizer: Any) -> None:
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld = []


class LossScaler(Scaling):
    """Applies `settings` like `torch.amp.GradScaler`: halve at a skip, double after `growth_interval` good steps."""

    def __init__(self, settings: LossScale) -> None:
        super().__init__(settings.initial)
        self.skipped: list[int] = []
        self.scales: list[float] = []
        self._dynamic, self._interval = settings.mode == "dynamic", settings.interval
        self._good_steps = 0
        self._step = 0
        self._skips = False
        self._handles: list[RemovableHandle] = []
        self._hooked: set[int] = set()
        self._peaks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._taken: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._bad: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._met: dict[int, torch.Tensor] = {}
        self._nested = 0

    def backward_starts(self, roots: Sequence[torch.Tensor], gradients: list[Any]) -> list[Any]:
        self.remove()
        self._nested = 0
        self._unscale(leaves_of(roots))
        return super().backward_starts(roots, gradients)

    def backward_nested(self, roots: Sequence[torch.Tensor]) -> None:
        """The inputs of a checkpointed part are leaves there, whose scaled gradients go on into the enclosing pass."""
        self._unscale(filter(_is_parameter, leaves_of(roots)))

    def _unscale(self, leaves: Iterable[torch.Tensor]) -> None:
        for leaf in leaves:
            if id(leaf) not in self._hooked:
                self._hooked.add(id(leaf))
                self._handles.append(_register_first(leaf, self._unscaler(leaf)))

    def gradient_nested(self, running: bool) -> None:
        """Gradients computed inside a pass stay scaled: the enclosing pass unscales them at its leaves."""
        self._nested += 1 if running else -1

    def gradient_starts(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[Any] | None:
        """Scale the gradients of a loss for parameters. Gradients for an input, as for a penalty or a physics loss, are
        scaled only where the script's own scaler does so."""
        self.remove()
        own = all(getattr(root, SCALED, False) for root in outputs)
        if any(root.numel() > 1 for root in outputs) or not (own or all(map(_is_parameter, inputs))):
            return None
        self._handles = [_register_first(leaf, self._unscaler(leaf)) for leaf in inputs if leaf.requires_grad]
        return [torch.full_like(root, self.scale) for root in outputs]

    def gradient_taken(self, outputs: Sequence[torch.Tensor]) -> None:
        """Keep the peaks of gradients of parameters for `_inspect`, as the script may use them in a step."""
        self.remove()
        self._taken += [(leaf, peak) for leaf, peak in self._peaks if _is_parameter(leaf)]
        self._peaks = []

    def _unscaler(self, leaf: torch.Tensor) -> Any:
        inverse = 1.0 / self.scale

        def unscale(gradient: torch.Tensor | None) -> torch.Tensor | None:
            if gradient is None or self._nested:  # a custom autograd function may have none for this leaf
                return None
            self._peaks.append((leaf, _peak(gradient)))
            return gradient * inverse

        return unscale

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        self.remove()
        self._inspect()

    def _inspect(self) -> None:
        """Record the leaves whose gradient was not finite."""
        self._met.update((id(leaf), leaf) for leaf, _ in self._peaks)
        self._bad |= {id(leaf): (leaf, leaf.grad) for leaf in _not_finite(self._peaks)}
        self._bad |= {id(leaf): (leaf, None) for leaf in _not_finite(self._taken)}
        self._peaks, self._taken = [], []

    def _is_bad(self, leaf: torch.Tensor) -> bool:
        """Whether the leaf's gradient in use is the non-finite one, clipped or not, with no newer one."""
        if id(leaf) not in self._bad or leaf.grad is None:
            return False
        return leaf.grad is self._bad[id(leaf)][1] or not bool(stored(leaf.grad).isfinite().all())

    def gradients_ready(self, optimizer: Any) -> None:
        """Skip a step with non-finite gradients: the optimizer finds no gradients or, without one, zeros."""
        self._inspect()
        if optimizer is None:
            skip = bool(self._bad)
            for leaf in self._met.values() if skip else ():
                if leaf.grad is not None:
                    leaf.grad.zero_()
        else:
            parameters = parameters_of(optimizer)
            skip = any(self._is_bad(p) for p in parameters)
            if skip:
                self.withhold(parameters)
            for parameter in parameters:
                self._bad.pop(id(parameter), None)
        self._met.clear()
        self._skips = self._skips or skip

    def _adapt(self, skipped: bool) -> None:
        if not self._dynamic:
            return
        self._good_steps = 0 if skipped else self._good_steps + 1
        if skipped:
            self.scale = max(self.scale / 2, SMALLEST)
        elif self._good_steps % self._interval == 0:
            self.scale = min(self.scale * 2, _LARGEST)

    def step_ended(self, optimizer: Any) -> None:
        super().step_ended(optimizer)
        if optimizer is None:
            self._bad.clear()

    def step_complete(self, optimizer: Any) -> None:
        """Update the scale once for all optimizers of a step, like `GradScaler.update`."""
        if self._skips:
            self.skipped.append(self._step)
        self._adapt(self._skips)
        self._skips = False
        self.scales.append(self.scale)
        self._step += 1

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hooked.clear()
