"""What a script's own casts lose: values too small for float16 or float8, and differences below a format's resolution,
as for bfloat16 coordinates of a few metres around 8000."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch

from precaudit.execution.rounding import LOW_DTYPES
from precaudit.instrument.torch_function import Call, dtype_name, tensors_in
from precaudit.model import Location
from precaudit.ownprecision.records import BlurredInCast, Entry, RoundedConstant, VanishedInCast
from precaudit.tracing.ops import caller_location
from precaudit.tracing.shadow import Energies

NARROWING = frozenset("to half bfloat16 type type_as copy".split())
"""Operations that may put values into a narrower dtype."""

_CREATING = frozenset("as_tensor full scalar_tensor tensor".split())
_FARTHER = 0.25
_ROWS = 4096
"""Rows of a large tensor that are examined."""


@dataclass
class _Cast:
    """The casts of one line: how many values were non-zero before and after, and the loss of the differences."""

    before: int = 0
    after: int = 0
    differences: Energies = field(default_factory=Energies)


class OwnCasts:
    """Observes every operation with a low-precision result; aggregates by line and dtype."""

    def __init__(self) -> None:
        self._casts: dict[tuple[Location | None, str], _Cast] = defaultdict(_Cast)
        self._constants: dict[Location | None, RoundedConstant] = {}

    def made(self, call: Call, result: torch.Tensor) -> None:
        if call.op in _CREATING and result.dtype in LOW_DTYPES and result.numel() == 1:
            self._created(call, result)
        if call.op not in NARROWING or result.dtype not in LOW_DTYPES:
            return
        for source in tensors_in(call.args):
            wider = source.is_floating_point() and source.element_size() > result.element_size()
            if wider and source.shape == result.shape:
                cast = self._casts[caller_location(), dtype_name(result.dtype)]
                cast.before += int(torch.count_nonzero(source))
                cast.after += int(torch.count_nonzero(result.float()))
                cast.differences += _lost_differences(source.detach(), result.detach())

    def _created(self, call: Call, result: torch.Tensor) -> None:
        becomes = float(result)
        for value in call.args:
            if isinstance(value, float) and _is_another(value, becomes):
                place = caller_location()
                self._constants.setdefault(place, RoundedConstant(place, dtype_name(result.dtype), value, becomes))

    def entries(self) -> list[Entry]:
        zeros = [
            VanishedInCast(*where, 1 - cast.after / cast.before)
            for where, cast in self._casts.items()
            if cast.before > cast.after
        ]
        blurred = (BlurredInCast(*where, cast.differences.relative) for where, cast in self._casts.items())
        return [*zeros, *blurred, *self._constants.values()]


def _is_another(value: float, becomes: float) -> bool:
    """Whether a number became zero or, as a decay below one would be, another distance from one, by a quarter."""
    if becomes == 0:
        return value != 0
    return 0.5 < value < 1 and abs(becomes - value) > _FARTHER * (1 - value)


def _lost_differences(source: torch.Tensor, result: torch.Tensor) -> Energies:
    """The rounding error relative to the standard deviation, for each column, as scales differ. Constant columns have
    nothing to lose, and overflow is reported elsewhere."""
    if not source.numel():
        return Energies()
    rows = [each.reshape(-1, each.shape[-1] if each.dim() > 1 else 1) for each in (source, result)]
    some = [each[:: len(each) // _ROWS | 1].double() for each in rows]
    values, rounded = (each - each.mean(0) for each in some)
    spread, error = values.square().sum(0), (rounded - values).square().sum(0)
    valid = (spread > 0) & (spread + error).isfinite()
    return Energies(float((error[valid] / spread[valid]).sum()), int(valid.sum()))
