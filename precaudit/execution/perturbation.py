"""Training from slightly other initial weights.

A float32 twin starts one unit in the last place away: how far it strays is how far rounding alone takes a
training run, the noise floor of every comparison. A jittered start, one percent away, stands in for a seed
in scripts whose seeds change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from precaudit.instrument.scopes import Frame

Change = Callable[[torch.Tensor], torch.Tensor]


def one_ulp(parameter: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(parameter, torch.full_like(parameter, float("inf")))


def jitter(seed: int, relative: float = 0.01) -> Change:
    """Every parameter plus normal noise of `relative` its rms, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)

    def change(parameter: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        return parameter + relative * parameter.square().mean().sqrt() * noise.to(parameter)

    return change


class Perturbation:
    """A scope listener: changes every model once, before its first forward."""

    def __init__(self, change: Change = one_ulp) -> None:
        self._change = change
        self._done: WeakSet[nn.Module] = WeakSet()

    @torch.no_grad()
    def entered(self, frame: Frame) -> None:
        if not frame.is_outermost or frame.module in self._done:
            return
        self._done.update(frame.module.modules())
        for parameter in frame.module.parameters():
            if parameter.is_floating_point():
                parameter.copy_(self._change(parameter))

    def left(self, frame: Frame, output: Any) -> Any:
        return output
