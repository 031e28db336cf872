"""The operation, in any dtype, that makes the loss nan or inf (the logarithm of a probability, say, that low precision
has rounded to zero), or whose backward makes the gradient so (the root of such a zero)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from precaudit.histograms.memory import in_transform
from precaudit.instrument.torchfunction import Call, stored
from precaudit.model import Location
from precaudit.ownprecision.records import Entry, NonFiniteGradient, NonFiniteLoss
from precaudit.tracing.faults import MASKING
from precaudit.tracing.ops import caller_location, unasked

_Made = tuple[str, Location | None]
"""An operation that made inf from finite values, or nan from values without nan, and its line."""
_Gradients = Sequence[torch.Tensor | None]
_HOOKED = "precaudit"


class OwnNonFinite:
    """Observes operations with non-finite results, of optimizers those on low values, and every loss. Non-finite values
    before a finite loss, such as a mask's, are harmless."""

    def __init__(self) -> None:
        self._makers: dict[_Made, None] = {}
        self._harmless: set[_Made] = set()
        self._lost: NonFiniteLoss | None = None

    def made(self, call: Call, result: torch.Tensor, before: torch.Tensor | None) -> None:
        """An operation whose result is not finite; `before` is the value that it has overwritten."""
        if self._lost or call.op in MASKING or not result.is_floating_point():
            return
        known = (before if t is result and before is not None else t for t in call.given)
        given = [t for t in known if t.is_floating_point()]
        if given and _spoils(given, result):
            self._makers[call.op, caller_location()] = None

    def loss(self, roots: Sequence[torch.Tensor], step: int) -> bool:
        """Whether this is the first non-finite loss, and the operation that caused it is known."""
        makers, self._makers = self._makers, {}
        if self._lost:
            return False
        if all(bool(root.isfinite().all()) for root in roots if isinstance(root, torch.Tensor)):
            self._harmless |= makers.keys()
            return False
        first = next((each for each in makers if each not in self._harmless), None)
        if first is not None:
            op, place = first
            self._lost = NonFiniteLoss(place, op, step)
        return first is not None

    def entries(self) -> list[Entry]:
        return [self._lost] if self._lost else []


class NonFiniteBackward:
    """Observes the backward of every operation: the last finite loss whose gradient some operation made non-finite is
    kept. Infinite gradients of a scaled loss are no fault of an operation, but of the loss scale, which may be too high
    at first."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._scale = 0.0
        self._last: NonFiniteGradient | None = None

    def backward_starts(self, finite: bool, scale: float, step: int) -> None:
        self._step, self._scale = step if finite else None, scale

    def made(self, call: Call, result: torch.Tensor) -> None:
        """Hooks the nodes of this operation: those between its result and what it was given, or was computed before."""
        given = [t.grad_fn for t in call.given if t is not result]
        waiting: list[Any] = [result.grad_fn]  # torch's stubs take a node's metadata for a method
        while waiting:
            node = waiting.pop()
            if node is None or node in given or _HOOKED in node.metadata or hasattr(node, "variable"):
                continue
            node.metadata[_HOOKED] = True
            node.register_hook(partial(self._passed, call.op, caller_location()))
            waiting += [before for before, _ in node.next_functions]

    def _passed(self, op: str, place: Location | None, made: _Gradients, given: _Gradients) -> None:
        if self._step is None or in_transform() or all(map(_is_finite, made)) or not all(map(_is_finite, given)):
            return
        nan = any(bool(stored(g).isnan().any()) for g in made if g is not None)
        if nan or self._scale <= 1:
            self._last = NonFiniteGradient(place, op, nan, self._step)
        self._step = None

    def entries(self) -> list[Entry]:
        return [self._last] if self._last else []


def _is_finite(gradient: torch.Tensor | None) -> bool:
    with unasked():
        return gradient is None or bool(stored(gradient).isfinite().all())


def _spoils(given: list[torch.Tensor], result: torch.Tensor) -> bool:
    if bool(result.isnan().any()) and not any(bool(t.isnan().any()) for t in given):
        return True
    return all(bool(t.isfinite().all()) for t in given)
