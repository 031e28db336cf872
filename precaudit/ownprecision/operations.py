"""Losses of operations in a script's own low precision: the smaller addend of an addition, a sum by index, the angle of
a sine, the difference of values that are alike and, outside of all modules (where the audit does not look, as in an
optimizer's step), any result."""

from __future__ import annotations

from collections.abc import Callable

import torch

from precaudit.execution.atomics import SUMS, not_in_place
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torch_function import Call, dtype_name, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.records import Cancellation, Entry, OpLoss
from precaudit.tracing.ops import STRUCTURAL, caller_location
from precaudit.tracing.records import ABSORBING
from precaudit.tracing.shadow import Energies, error_of, repeatable, smaller_addend

_EVERY = 7
"""Interval of the examined steps, as examination takes as long as the step itself. It has no factor in common with two
optimizers that take turns, or with several steps on each batch."""


ANGLES = frozenset({"sin", "cos"})
_ADDING = ABSORBING | SUMS
_DIFFERENCES = frozenset({"sub", "add"})


_Where = tuple[Location | None, str, str, str]
"""A place, with the module, the operation and the dtype there."""


class OwnOperations:
    """Observes every operation with a low-precision result."""

    def __init__(self, current: Callable[[], Frame | None]) -> None:
        self._current = current
        self._step = 0
        self._lost: dict[_Where, Energies] = {}
        self._cancelled: dict[_Where, Energies] = {}
        self._region_steps: set[Location | None] = set()

    def made(self, call: Call, result: torch.Tensor, before: torch.Tensor | None, stepping: bool) -> None:
        """`before` is the value that the operation has overwritten."""
        op, call = call.op, _out_of_place(call, before)
        if stepping and all(t.dtype == torch.float32 for t in tensors_in(call.args)):
            self._region_steps.add(caller_location())
        if op in ANGLES and not self._step % _EVERY:
            self._note(self._lost, op, result, _blurred(call.args[0], result))
        if op in _DIFFERENCES and not self._step % _EVERY:
            self._note(self._cancelled, op, result, _cancelled(_operands(call, before), result))
        outside = self._current() is None and op not in STRUCTURAL | ANGLES
        if self._step % _EVERY or not (outside or op in _ADDING) or not repeatable(call):
            return
        if op == "add" and not smaller_addend(tensors_in(call.args), result):
            return  # it would hide the losses of other calls on the same line; a sum by index mostly begins at zeros
        if (energies := error_of(result, call)) is not None:
            self._note(self._lost, op, result, energies)

    def _note(self, kept: dict[_Where, Energies], op: str, result: torch.Tensor, energies: Energies) -> None:
        frame = self._current()
        where = (caller_location(), frame.name.fqn if frame else "", op, dtype_name(result.dtype))
        kept[where] = kept.get(where, Energies()) + energies

    def step_ended(self) -> None:
        self._step += 1

    def entries(self) -> list[Entry]:
        lost = [OpLoss(*where, each.relative, where[0] in self._region_steps) for where, each in self._lost.items()]
        return [*lost, *(Cancellation(*where, each.relative) for where, each in self._cancelled.items())]


def _out_of_place(call: Call, before: torch.Tensor | None) -> Call:
    """A sum by index, as degrees are counted, on the values that it has overwritten; any other call unchanged."""
    if before is None or call.op not in SUMS:
        return call
    return not_in_place(call)._replace(args=(before, *call.args[1:]))


def _operands(call: Call, before: torch.Tensor | None) -> list[torch.Tensor]:
    """What an operation was given, as it was then; [] where that is overwritten and not known."""
    if call.writes and before is None:
        return []
    return tensors_in((call.args[0] if before is None else before, *call.args[1:]))


def _cancelled(operands: list[torch.Tensor], result: torch.Tensor) -> Energies:
    """By how much of each difference rounding has changed what was subtracted, which is half a unit in the last place
    at most: a few large differences hide no small ones. Where differences have most in common, which tells nothing,
    by how much of their spread. A number that a script writes is exact, and where nothing is left the operands may be
    the same."""
    rounded = [_squared_rounding(t) for t in operands if t.dtype == result.dtype]
    values = result.detach().float()
    left = values.square()
    if not rounded or not bool(left.isfinite().all()):
        return Energies()
    error = sum(rounded, torch.zeros_like(left))
    spread = float(values.var(correction=0))
    common = len(rounded) > 1 and 0 < 2 * spread < float(left.mean())
    size = left.clamp(max=spread) if common else left
    lost = torch.where(left > 0, error / size, 0.0).clamp(max=1.0)
    return Energies(float(lost.sum()), float(torch.count_nonzero(left)))


def _squared_rounding(values: torch.Tensor) -> torch.Tensor:
    """The mean square of what rounding changes values by. Whole numbers may be exact, if the format holds them all."""
    rounding = _squared_units(values) / 12
    return rounding.where(values.abs() > 2 / torch.finfo(values.dtype).eps, 0.0) if _is_whole(values) else rounding


def _is_whole(values: torch.Tensor) -> bool:
    """Whether these are whole numbers by choice: large ones are so in any case."""
    chosen = values.abs() < 1 / torch.finfo(values.dtype).eps
    return bool(chosen.any()) and bool((values == values.round())[chosen].all())


def _squared_units(values: torch.Tensor) -> torch.Tensor:
    """The squares of the units in the last place."""
    _, exponent = torch.frexp(values.detach().float())
    unit = torch.finfo(values.dtype).eps * torch.exp2(exponent.float() - 1)
    return unit**2


def _blurred(angle: torch.Tensor, result: torch.Tensor) -> Energies:
    """The error of a sine by rounding its low-precision angle, by half a unit in the last place. Integers, such as
    positions, may be exact."""
    if angle.dtype != result.dtype or _is_whole(angle):
        return Energies()
    error = (_squared_units(angle) / 12).clamp(max=1.0)
    return Energies(float(error.sum()), float(result.detach().float().square().sum()))
