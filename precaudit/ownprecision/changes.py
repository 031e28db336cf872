"""By how much a script changes its gradients between the backward pass and the scaler: a change that is a matter of the
gradients alone is as large, beside them, with a loss scale as without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from precaudit.instrument.events import TrainingListener
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.torchfunction import stored
from precaudit.ownprecision.state import energy

_SETTING = "changed_by"
_MOST = 32
"""Losses, of a few optimizers: an unlucky scaler skips its first dozen steps."""
_NOISE = 1e-6
_FACTOR = 4.0
"""Another batch's gradients may be changed by somewhat more or less."""


class GradientChanges(TrainingListener):
    """Notes the relative change (rms) of each optimizer's gradients, in order of their first steps, where they are
    finite for the first time: on the weights that the run begins with."""

    def __init__(self, names: ModuleNames, settings: dict[str, object]) -> None:
        self._names, self._settings = names, settings
        self._before: dict[int, torch.Tensor] = {}
        self._seen: dict[int, float | None] = {}
        self._scaled = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        scaler = torch.amp.GradScaler
        self._settings[_SETTING] = []
        with (
            mock.patch.object(scaler, "scale", self._scaling(scaler.scale)),
            mock.patch.object(scaler, "unscale_", self._unscaling(scaler.unscale_)),
            mock.patch.object(scaler, "step", self._unscaling(scaler.step)),
        ):
            yield

    def backward_ended(self, roots: Sequence[torch.Tensor]) -> None:
        watched = self._names.models.values() if 0 < self._scaled <= _MOST else ()
        trained = (p for model in watched for p in model.parameters())
        self._before = {id(p): stored(p.grad).clone() for p in trained if p.grad is not None}

    def _scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            self._scaled += 1
            return original(scaler, outputs)

        return scale

    def _unscaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._seen.setdefault(id(optimizer), None) is None:
                self._seen[id(optimizer)] = self._change(optimizer)
                self._settings[_SETTING] = list(self._seen.values())
            return original(scaler, optimizer, *args, **kwargs)

        return unscale

    def _change(self, optimizer: Any) -> float | None:
        """None where nothing is known yet."""
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        pairs = [(stored(p.grad), self._before[id(p)]) for p in stepped if id(p) in self._before]
        pairs = [(now, before) for now, before in pairs if now.shape == before.shape]
        whole = sum(energy(before) for _, before in pairs)
        change = sum(energy(now - before) for now, before in pairs)
        return (change / whole) ** 0.5 if whole and math.isfinite(whole + change) else None


def depends_on_scale(without: Mapping[str, Any], scaled: Mapping[str, Any]) -> bool | None:
    """Whether gradients are changed by more, or less, where they have the loss scale in them; None where no change of
    theirs is known."""
    pairs = zip(without.get(_SETTING, []), scaled.get(_SETTING, []), strict=False)
    known = [sorted(pair) for pair in pairs if None not in pair]
    return any(large > _NOISE and large > _FACTOR * small for small, large in known) if known else None
