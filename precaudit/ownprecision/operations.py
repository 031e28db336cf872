"""Losses of operations in a script's own low precision: the smaller addend of an addition, a sum by index, the angle of
a sine and, outside of all modules (where the audit does not look, as in an optimizer's step), any result."""

from __future__ import annotations

from collections.abc import Callable

import torch

from precaudit.execution.atomics import SUMS, not_in_place
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torchfunction import Call, dtype_name, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.records import Entry, OpLoss
from precaudit.tracing.ops import STRUCTURAL, caller_location
from precaudit.tracing.records import ABSORBING
from precaudit.tracing.shadow import Energies, error_of, repeatable, smaller_addend

_EVERY = 8
"""Interval of the examined steps: examination takes as long as the step itself."""


ANGLES = frozenset({"sin", "cos"})
_ADDING = ABSORBING | SUMS


class OwnOperations:
    """Observes every operation with a low-precision result."""

    def __init__(self, current: Callable[[], Frame | None]) -> None:
        self._current = current
        self._step = 0
        self._lost: dict[tuple[Location | None, str, str, str], Energies] = {}
        self._region_steps: set[Location | None] = set()

    def made(self, call: Call, result: torch.Tensor, before: torch.Tensor | None, stepping: bool) -> None:
        """`before` is the value that the operation has overwritten."""
        op, call = call.op, _out_of_place(call, before)
        if stepping and all(t.dtype == torch.float32 for t in tensors_in(call.args)):
            self._region_steps.add(caller_location())
        if op in ANGLES and not self._step % _EVERY:
            self._note(op, result, _blurred(call.args[0], result))
        outside = self._current() is None and op not in STRUCTURAL | ANGLES
        if self._step % _EVERY or not (outside or op in _ADDING) or not repeatable(call):
            return
        if op == "add" and not smaller_addend(tensors_in(call.args), result):
            return  # it would hide the losses of other calls on the same line; a sum by index mostly begins at zeros
        if (energies := error_of(result, call)) is not None:
            self._note(op, result, energies)

    def _note(self, op: str, result: torch.Tensor, energies: Energies) -> None:
        frame = self._current()
        key = (caller_location(), frame.name.fqn if frame else "", op, dtype_name(result.dtype))
        self._lost[key] = self._lost.get(key, Energies()) + energies

    def step_ended(self) -> None:
        self._step += 1

    def entries(self) -> list[Entry]:
        return [
            OpLoss(*where, energies.relative, where[0] in self._region_steps) for where, energies in self._lost.items()
        ]


def _out_of_place(call: Call, before: torch.Tensor | None) -> Call:
    """A sum by index, as degrees are counted, on the values that it has overwritten; any other call unchanged."""
    if before is None or call.op not in SUMS:
        return call
    return not_in_place(call)._replace(args=(before, *call.args[1:]))


def _blurred(angle: torch.Tensor, result: torch.Tensor) -> Energies:
    """The error of a sine by rounding its low-precision angle, by half a unit in the last place. Integers, such as
    positions, may be exact."""
    if angle.dtype != result.dtype or bool((angle == angle.round()).all()):
        return Energies()
    _, exponent = torch.frexp(angle.detach().float())
    unit = torch.finfo(angle.dtype).eps * torch.exp2(exponent.float() - 1)
    return Energies(float((unit**2 / 12).clamp(max=1.0).sum()), float(result.detach().float().square().sum()))
