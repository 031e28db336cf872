"""The operation, in any dtype, that makes the loss nan or inf: the logarithm of a probability, say, or a division by a
difference, that low precision has rounded to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from precaudit.instrument.torchfunction import Call
from precaudit.model import Location
from precaudit.ownprecision.overflows import MEANT
from precaudit.tracing.ops import caller_location, line_of

_Made = tuple[str, Location | None]
"""An operation that made inf from finite values, or nan from values without nan, and its line."""


class OwnNonFinite:
    """Observes operations with non-finite results, of optimizers those on low values, and every loss. Non-finite values
    before a finite loss, such as a mask's, are harmless."""

    def __init__(self) -> None:
        self._makers: dict[_Made, None] = {}
        self._harmless: set[_Made] = set()
        self._lost: dict[str, Any] | None = None

    def made(self, call: Call, result: torch.Tensor, before: torch.Tensor | None) -> None:
        """An operation whose result is not finite; `before` is the value that it has overwritten."""
        if self._lost or call.op in MEANT or not result.is_floating_point():
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
            self._lost = {"kind": "nonfinite", "op": first[0], **line_of(first[1]), "step": step}
        return first is not None

    def entries(self) -> list[dict[str, Any]]:
        return [self._lost] if self._lost else []


def _spoils(given: list[torch.Tensor], result: torch.Tensor) -> bool:
    if bool(result.isnan().any()) and not any(bool(t.isnan().any()) for t in given):
        return True
    return all(bool(t.isfinite().all()) for t in given)
