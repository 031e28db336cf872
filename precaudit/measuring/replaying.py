"""Replays the heaviest layers alone under the GPU's counters, to measure how busy they keep its Tensor Cores.

Counters cover the whole device, so that in a training step they mix all layers. A replayed layer is a check on what
kernel names suggest. Layers of one type and shapes are equivalent: only the first is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from precaudit.instrument.names import ModuleName, is_leaf
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.instrument.torch_function import tensors_in
from precaudit.ownprecision.stale_casts import LOOKED_UP

MOST, SECONDS, TOGETHER = 6, 0.3, 10


@dataclass(frozen=True)
class LayerCall:
    """A layer with the inputs of one call, and the number of values of its largest weight."""

    name: ModuleName
    module: nn.Module
    args: Any
    kwargs: Any
    size: int

    def again(self) -> None:
        with torch.no_grad():
            self.module(*self.args, **self.kwargs)


class LayerCalls(ScopeListener):
    """Calls of a few leaf modules with the largest weights; only a few, since their inputs are kept."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, LayerCall] = {}

    def __iter__(self) -> Iterator[LayerCall]:
        return iter(self._calls.values())

    def left(self, frame: Frame, output: Any) -> None:
        if output is not None:
            self._keep(frame)

    def _keep(self, frame: Frame) -> None:
        module, (args, kwargs) = frame.module, frame.call
        size = max((p.numel() for p in module.parameters() if p.dim() > 1), default=0)
        if not size or isinstance(module, LOOKED_UP) or not is_leaf(module):
            return
        shapes = tuple(p.shape for p in module.parameters()), tuple(t.shape for t in tensors_in((args, kwargs)))
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        self._calls.setdefault((type(module), shapes), LayerCall(frame.name, module, args, kwargs, size))
        if len(self._calls) > MOST:
            del self._calls[min(self._calls, key=lambda key: self._calls[key].size)]


def replay(call: LayerCall, wait: Callable[[], None]) -> bool:
    """Call the layer repeatedly for a while; returns whether it can be called alone."""
    try:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            for _ in range(TOGETHER):
                call.again()
            wait()
    except Exception:  # a layer may depend on its surroundings in any way
        return False
    return True
