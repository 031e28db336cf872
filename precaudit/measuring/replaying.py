"""The heaviest layers alone, again and again, each under the GPU's own counters: how busy they keep its Tensor Cores.

Counters are the whole device's, so in a training step they are of all layers together. What a layer does alone is the
truth beside what its kernels' names say. Layers of one type and the same shapes are one: the first of them is replayed.
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
from precaudit.instrument.torchfunction import tensors_in
from precaudit.ownprecision.stale_casts import LOOKED_UP

MOST, SECONDS, TOGETHER = 6, 0.3, 10


@dataclass(frozen=True)
class LayerCall:
    """A layer with the inputs of one of its calls, and how many values its largest weight has."""

    name: ModuleName
    module: nn.Module
    args: Any
    kwargs: Any
    size: int

    def again(self) -> None:
        with torch.no_grad():
            self.module(*self.args, **self.kwargs)


class LayerCalls(ScopeListener):
    """Calls of the leaves with the largest matrices of weights, a few only, since their inputs are kept."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, LayerCall] = {}

    def __iter__(self) -> Iterator[LayerCall]:
        return iter(self._calls.values())

    def left(self, frame: Frame, output: Any) -> Any:
        if output is not None:
            self._keep(frame)
        return output

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
    """For a while; whether the layer can be called by itself."""
    try:
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            for _ in range(TOGETHER):
                call.again()
            wait()
    except Exception:  # whatever a layer expects around it
        return False
    return True
