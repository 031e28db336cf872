"""Training from perturbed initial weights.

A float32 twin starts from weights rounded once to the plan's format, at most half an ulp away: how far its losses
deviate is the noise floor of the comparison. A jittered start, one percent away, replaces a seed in scripts whose seeds
change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from precaudit.execution.rounding import round_mantissa
from precaudit.formats import get_format
from precaudit.instrument.names import by_module
from precaudit.instrument.scopes import Frame, ScopeListener

Change = Callable[[torch.Tensor], torch.Tensor]


def rounded_to(format_name: str) -> Change:
    """Rounding to the format's precision, with float32's range."""
    bits = get_format(format_name).mantissa
    return lambda parameter: round_mantissa(parameter, bits).to(parameter)


def jitter(seed: int) -> Change:
    """Adds normal noise of a hundredth of its rms to every parameter, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)

    def change(parameter: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        return parameter + 0.01 * parameter.square().mean().sqrt() * noise.to(parameter)

    return change


class Perturbation(ScopeListener):
    """Changes the weights of every model once, before its first forward, as lazy models have none earlier. Parts that
    were changed in a call of their own are not changed again, nor are weights that are created later."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._done: MutableMapping[nn.Module, None] = by_module()
        self._changed: MutableMapping[torch.Tensor, None] = WeakTensorKeyDictionary()

    @torch.no_grad()
    def entered(self, frame: Frame) -> None:
        if not frame.is_outermost or frame.module in self._done:
            return
        if any(is_lazy(parameter) for parameter in frame.module.parameters()):
            return
        new = [module for module in frame.module.modules() if module not in self._done]
        self._done.update(dict.fromkeys(new))
        for parameter in (each for module in new for each in module.parameters(recurse=False)):
            if parameter.is_floating_point() and parameter not in self._changed:
                self._changed[parameter] = None
                parameter.copy_(self._change(parameter))
