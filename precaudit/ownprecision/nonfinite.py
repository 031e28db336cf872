"""The operation, in any dtype, that makes the loss nan or inf (the logarithm of a probability, say, that low precision
has rounded to zero), or whose backward makes the gradient so (the root of such a zero); else the data that were so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from precaudit.histograms.memory import in_transform
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torch_function import Call, stored
from precaudit.model import Location
from precaudit.ownprecision.records import Entry, NonFiniteData, NonFiniteGradient, NonFiniteLoss
from precaudit.tracing.faults import MASKING, finite_amax
from precaudit.tracing.ops import caller_location, unasked

_Made = tuple[str, Location | None]
"""An operation that made inf from finite values, or nan from values without nan, and its line."""
_Gradients = Sequence[torch.Tensor | None]
_HOOKED = "precaudit"
_KNOWN = "_precaudit_nonfinite"
"""Attribute of a result that is not finite: what reads it has not got that from the data."""


class OwnNonFinite:
    """Observes operations with non-finite results, of optimizers those on low values, and every loss. Non-finite values
    before a finite loss, such as a mask's, are harmless."""

    def __init__(self, names: ModuleNames, current: Callable[[], Frame | None]) -> None:
        """`current` returns the frame of the running forward."""
        self._names, self._current = names, current
        self._makers: dict[_Made, NonFiniteLoss] = {}
        self._arrived: dict[_Made, NonFiniteData] = {}
        self._harmless: set[_Made] = set()
        self._lost: NonFiniteLoss | NonFiniteData | None = None

    def made(self, call: Call, result: torch.Tensor, before: torch.Tensor | None) -> None:
        """An operation whose result is not finite; `before` is the value that it has overwritten."""
        if self._lost or not result.is_floating_point():
            return
        known = (before if t is result and before is not None else t for t in call.given)
        given = [t for t in known if t.is_floating_point()]
        place, frame, masks = caller_location(), self._current(), call.op in MASKING
        fqn = frame.name.fqn if frame else ""
        if given and not masks and _spoils(given, result):
            nan = bool(result.isnan().any())
            made = NonFiniteLoss(place, call.op, 0, fqn, nan, finite_amax(given))
            self._makers.setdefault((call.op, place), made)
        elif (source := next((t for t in given if self._is_of_data(t)), None)) is not None:
            bad, nan = int((~source.isfinite()).sum()), bool(source.isnan().any())
            arrived = NonFiniteData(place, call.op, 0, nan, bad, source.numel(), fqn)
            self._arrived.setdefault((call.op, place), arrived)
        if not (masks and call.writes):  # a script writes nan to its data to mark what is missing
            setattr(result, _KNOWN, True)

    def _is_of_data(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds non-finite values that no operation made, and no training."""
        known = any(hasattr(t, _KNOWN) for t in (tensor, tensor._base) if t is not None)
        if known or tensor.grad_fn is not None or bool(tensor.isfinite().all()):
            return False
        return not any(tensor is held or tensor is held.grad for held in self._names.parameters())

    def loss(self, roots: Sequence[torch.Tensor], step: int) -> bool:
        """Whether this is the first non-finite loss, and what caused it is known."""
        seen: dict[_Made, NonFiniteLoss | NonFiniteData] = {**self._arrived, **self._makers}
        self._makers, self._arrived = {}, {}
        if self._lost:
            return False
        if all(bool(root.isfinite().all()) for root in roots if isinstance(root, torch.Tensor)):
            self._harmless |= seen.keys()
            return False
        causes = [seen[each] for each in seen if each not in self._harmless]
        if causes:
            self._lost = replace(min(causes, key=_rank), step=step)
        return bool(causes)

    def entries(self) -> list[Entry]:
        return [self._lost] if self._lost else []


class NonFiniteBackward:
    """Observes the backward of every operation: the last finite loss whose gradient some operation made non-finite is
    kept. Infinite gradients of a scaled loss are no fault of an operation, but of the loss scale, which may be too high
    at first."""

    def __init__(self, current: Callable[[], Frame | None]) -> None:
        """`current` returns the frame of the running forward."""
        self._current = current
        self._step: int | None = None
        self._scale = 0.0
        self._last: NonFiniteGradient | None = None

    def backward_starts(self, finite: bool, scale: float, step: int) -> None:
        self._step, self._scale = step if finite else None, scale

    def made(self, call: Call, result: torch.Tensor) -> None:
        """Hooks the nodes of this operation: those between its result and what it was given, or was computed before."""
        if result.grad_fn is None:
            return
        given = [t.grad_fn for t in call.given if t is not result]
        frame = self._current()
        passed = partial(self._passed, call.op, caller_location(), frame.name.fqn if frame else "")
        waiting: list[Any] = [result.grad_fn]  # torch's stubs take a node's metadata for a method
        while waiting:
            node = waiting.pop()
            if node is None or node in given or _HOOKED in node.metadata or hasattr(node, "variable"):
                continue
            node.metadata[_HOOKED] = True
            node.register_hook(passed)
            waiting += [before for before, _ in node.next_functions]

    def _passed(self, op: str, place: Location | None, fqn: str, made: _Gradients, given: _Gradients) -> None:
        if self._step is None or in_transform() or all(map(_is_finite, made)) or not all(map(_is_finite, given)):
            return
        nan = any(bool(stored(g).isnan().any()) for g in made if g is not None)
        if nan or self._scale <= 1:
            self._last = NonFiniteGradient(place, op, nan, self._step, fqn)
        self._step = None

    def entries(self) -> list[Entry]:
        return [self._last] if self._last else []


def _is_finite(gradient: torch.Tensor | None) -> bool:
    with unasked():
        return gradient is None or bool(stored(gradient).isfinite().all())


def _rank(cause: NonFiniteLoss | NonFiniteData) -> int:
    """What an operation made comes first, and infinite data, which may be a mask, last."""
    return 0 if isinstance(cause, NonFiniteLoss) else 1 if cause.nan else 2


def _spoils(given: list[torch.Tensor], result: torch.Tensor) -> bool:
    if bool(result.isnan().any()) and not any(bool(t.isnan().any()) for t in given):
        return True
    return all(bool(t.isfinite().all()) for t in given)
