"""Stale weights in a script's own autocast: torch caches casts until the outermost region ends, even if an optimizer
steps inside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from precaudit.instrument.events import TrainingListener, parameters_of
from precaudit.instrument.scopes import Frame, ScopeListener
from precaudit.ownprecision.baseline import Baseline
from precaudit.ownprecision.records import StaleCast

LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)
"""autocast does not cast the tables of embeddings."""


class StaleCasts(TrainingListener, ScopeListener):
    """Records `stale_casts`."""

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline
        self._cache: object = None
        self._cast: set[int] = set()
        self._steps: Counter[int] = Counter()
        self._optimizer = ""

    def entered(self, frame: Frame) -> None:
        cache = self._baseline.cast_cache()
        if cache is None or isinstance(frame.module, LOOKED_UP):
            return
        if cache is not self._cache:
            self._cache, self._cast, self._steps = cache, set(), Counter()
        own = {id(p) for p in frame.module.parameters(recurse=False) if _is_cast(p)}
        if steps := max((self._steps[key] for key in own), default=0):
            self._note(frame.name.fqn, steps)
        self._cast |= own

    def step_ended(self, optimizer: Any) -> None:
        if optimizer is None or not self._cast:
            return
        stepped = [p for p in parameters_of(optimizer) if p.grad is not None]
        self._steps.update(id(p) for p in stepped if id(p) in self._cast)
        self._optimizer = type(optimizer).__name__

    def _note(self, fqn: str, steps: int) -> None:
        own = self._baseline.own
        noted = own.stale_casts or StaleCast(self._baseline.region_at, fqn, self._optimizer, steps)
        own.stale_casts = replace(noted, steps=max(noted.steps, steps))


def _is_cast(parameter: torch.Tensor) -> bool:
    """Whether autocast casts the parameter. Vectors are scales and biases of normalizations, which it leaves alone, or
    biases, which accompany a matrix."""
    return parameter.requires_grad and parameter.dtype == torch.float32 and parameter.dim() > 1
