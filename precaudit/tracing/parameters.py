"""Statistics of weights, gradients, optimizer states and updates, under the first module that owns the parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from precaudit.execution.rounding import HALF_DTYPES
from precaudit.histograms import Addition, add_all
from precaudit.histograms.memory import of_this_rank
from precaudit.instrument.events import parameters_of
from precaudit.instrument.names import ModuleName, ModuleNames, by_module
from precaudit.instrument.torch_function import dtype_name
from precaudit.tracing.slots import ParameterSlot
from precaudit.tracing.waiting import WaitingGradients, may_wait

_SLICE = 1 << 22
"""Values processed at a time, which bounds the memory for several float64 temporaries."""


def _has_exponents(parameter: torch.Tensor) -> bool:
    """Not packed or quantized weights, counters, or the state of a generator, which some libraries keep as
    parameters."""
    return parameter.is_floating_point() or parameter.is_complex()


class ParameterTracker:
    """Registers parameters as their modules run. `active` says whether gradients are recorded."""

    def __init__(self, log2_scale: Callable[[], int]) -> None:
        self.active = False
        self._log2_scale = log2_scale
        self.slots: dict[tuple[ModuleName, str], ParameterSlot] = {}
        self.tied: dict[ModuleName, ModuleName] = {}
        self._parameters: dict[int, tuple[ref[torch.Tensor], ParameterSlot]] = {}
        self._seen: MutableMapping[nn.Module, int] = by_module()
        self._handles: list[RemovableHandle] = []
        self._hooked: set[int] = set()
        self._before: dict[int, torch.Tensor] = {}
        self._buffers: dict[int, torch.Tensor] = {}
        self._waiting = WaitingGradients()

    def learn(self, module: nn.Module, name: ModuleName) -> None:
        if not module._parameters:
            return
        trainable = sum(p.requires_grad for p in module._parameters.values() if p is not None)
        if self._seen.get(module) == trainable:
            return
        own = [(n, p) for n, p in module._parameters.items() if p is not None]
        if any(is_lazy(p) or not p.is_leaf or torch._C._functorch.is_functorch_wrapped_tensor(p) for _, p in own):
            return
        self._seen[module] = trainable
        for parameter_name, parameter in own:
            self._learn(name, parameter_name, parameter)

    def _learn(self, module: ModuleName, name: str, parameter: torch.Tensor) -> None:
        if not _has_exponents(parameter):
            return
        known = self._find(parameter)
        if known is not None:
            if known.module != module:
                self.tied.setdefault(module, known.module)
            self._hook(parameter, known)
            return
        slot = self.slots.setdefault(
            (module, name), ParameterSlot(module, name, parameter.numel(), dtype_name(parameter.dtype))
        )
        self._parameters[id(parameter)] = (ref(parameter), slot)
        self._hooked.discard(id(parameter))
        self._hook(parameter, slot)

    def _hook(self, parameter: torch.Tensor, slot: ParameterSlot) -> None:
        """Add a gradient hook, once for every trainable parameter, including those unfrozen later."""
        if parameter.requires_grad and id(parameter) not in self._hooked:
            self._hooked.add(id(parameter))
            holder = ref(parameter)
            self._handles.append(parameter.register_hook(lambda grad: self._observe_gradient(slot, holder(), grad)))

    def _find(self, parameter: torch.Tensor) -> ParameterSlot | None:
        holder, slot = self._parameters.get(id(parameter), (None, None))
        return slot if holder is not None and holder() is parameter else None

    def _observe_gradient(
        self, slot: ParameterSlot, parameter: torch.Tensor | None, gradient: torch.Tensor | None
    ) -> None:
        if not self.active or gradient is None:
            return
        slot.hooked = True
        if parameter is not None and may_wait(parameter, gradient):
            self._waiting.add(parameter, Addition(slot.gradient.pending, gradient.detach(), None, self._log2_scale()))
        else:
            slot.gradient.add(gradient, self._log2_scale())

    def _live(self) -> list[tuple[torch.Tensor, ParameterSlot]]:
        return [(p, slot) for holder, slot in self._parameters.values() if (p := holder()) is not None]

    def learn_all(self, names: ModuleNames, optimizer: Any) -> None:
        """Register parameters that were replaced while their module ran: by `torch.func.functional_call`, or by the
        unsharded ones that `fully_shard` gathers for the forward pass from the shards that `optimizer` has."""
        unmet = {id(p) for p in parameters_of(optimizer) if self._find(p) is None}
        for model in names.models.values():
            for module in model.modules():
                name = names.of(module)
                self.learn(module, name)
                for parameter_name, parameter in module._parameters.items():
                    if parameter is not None and id(parameter) in unmet:
                        self._learn(name, parameter_name, parameter)

    def keep_weights(self, optimizer: Any) -> None:
        """Copy the weights that `optimizer` is about to change, after another optimizer's `observe_weights` in this
        step."""
        self.flush()
        changing = self._about_to_change(optimizer)
        changed = [p for p in parameters_of(optimizer) if id(p) in changing]
        self._before |= {id(p): self._buffer(p) for p in changed}
        _copy_all([(self._before[id(p)], p.detach()) for p in changed])

    def observe_weights(self, optimizer: Any) -> None:
        """Record all weights, and copy those that `optimizer` is about to change."""
        self.flush()
        changing = self._about_to_change(optimizer)
        away = []
        for parameter, slot in self._live():
            value, kept = parameter.detach(), None
            if id(parameter) in changing:
                kept = self._before[id(parameter)] = self._buffer(parameter)
            if value.is_cuda:
                away.append((Addition(slot.weight.pending, value), kept))
                continue
            if kept is None:
                slot.weight.add(value)
            else:
                slot.weight.pending.add_and_copy(value, kept)
        add_all(addition for addition, _ in away)
        _copy_all([(kept, addition.values) for addition, kept in away if kept is not None])

    def _about_to_change(self, optimizer: Any) -> set[int]:
        """Ids of parameters with a gradient. A gradient that no hook has seen, as the script assigned it, is recorded
        here; a scaler has unscaled it by now."""
        changing, unseen = set(), []
        for parameter in parameters_of(optimizer):
            slot = self._find(parameter)
            if parameter.grad is None or slot is None:
                continue
            changing.add(id(parameter))
            if not slot.hooked:
                unseen.append(Addition(slot.gradient.pending, parameter.grad.detach()))
            slot.hooked = False
        add_all(unseen)
        return changing

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        """The buffer for the copy of a weight, reused in every step: allocation costs more than the copy."""
        buffer = self._buffers.get(id(parameter))
        wanted = parameter.shape, parameter.dtype, parameter.device
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != wanted:
            buffer = self._buffers[id(parameter)] = torch.empty_like(parameter, requires_grad=False)
        return buffer

    def observe_step(self, optimizer: Any, absorption: bool) -> None:
        """Record updates (weight after minus weight before) and the optimizer's state tensors."""
        state = getattr(optimizer, "state", {})
        additions = []
        for parameter in parameters_of(optimizer):
            slot, before = self._find(parameter), self._before.pop(id(parameter), None)
            if slot is None or before is None:
                continue
            additions.append(Addition(slot.update.pending, parameter.detach(), before))
            if absorption:
                slot.absorbed = absorbed_update(of_this_rank(before), of_this_rank(parameter.detach()))
            for key, value in state.get(parameter, {}).items() if hasattr(state, "get") else ():
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 0:
                    additions.append(Addition(slot.state_gauge(str(key), value.dtype).pending, value))
        add_all(additions)
        self._before.clear()

    def flush(self) -> None:
        """Record the waiting gradients; the end of a backward pass does so too, unless it raised."""
        self._waiting.flush()

    def unhook(self) -> None:
        """Remove the hooks and copies until modules run in a recorded step again: other steps must cost neither time
        nor memory."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked.clear()
        self._seen.clear()
        self._buffers.clear()

    def remove(self) -> None:
        """Remove hooks and forget all parameters; their slots stay and are reused if they are met again."""
        self.unhook()
        self.flush()
        self._before.clear()
        self._parameters.clear()


def _copy_all(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy each value into its buffer, with one kernel launch where possible."""
    if copies and all(type(value) is torch.Tensor for _, value in copies):
        torch._foreach_copy_([buffer for buffer, _ in copies], [value for _, value in copies])
    else:
        for buffer, value in copies:
            buffer.copy_(value)


@torch.no_grad()
def absorbed_update(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """For each half format, the share (0 to 1) of the update's sum of squares that would be lost if weights were stored
    in it; {} where the update is zero or not finite. `before` and `after` have equal shapes.

    A weight w (rounded to the format) absorbs its update u when w + u rounds back to w.
    """
    sums = before.new_zeros(1 + len(HALF_DTYPES), dtype=torch.float64)
    for old, new in zip(before.reshape(-1).split(_SLICE), after.reshape(-1).split(_SLICE), strict=True):
        update = new.double() - old.double()
        energy = update.square()
        lost = [_is_absorbed(old.to(dtype), update) for dtype in HALF_DTYPES.values()]
        sums += torch.stack([energy.sum(), *(torch.where(gone, energy, 0.0).sum() for gone in lost)])
    total, *absorbed = sums.tolist()
    if not 0 < total < math.inf:
        return {}
    return {name: energy / total for name, energy in zip(HALF_DTYPES, absorbed, strict=True)}


def _is_absorbed(stored: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    return (stored.double() + update).to(stored.dtype) == stored
