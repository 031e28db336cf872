"""What only a run in a low format shows: values created in it that are no longer distinct (positions, indices, counts),
and which operations have half results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from precaudit.execution.rounding import HALVES
from precaudit.histograms.memory import in_transform
from precaudit.instrument.scopes import Frame
from precaudit.instrument.torch_function import Call, OperationMode, floats_in
from precaudit.tracing.integers import integer_amax
from precaudit.tracing.ops import CASTS, caller_location
from precaudit.tracing.records import AliasedValues, HalfResult

_MAKERS = frozenset("arange linspace logspace range".split())
_WIDE_INTEGERS = (torch.int16, torch.int32, torch.int64)
"""Narrower integers are exact in both half formats."""

Noticed = Callable[[str, torch.Tensor, int], None]
Stored = Callable[[str, bool], None]


class AliasingMode(OperationMode):
    """Passes half results with fewer distinct values than requested to `noticed`: evenly spaced values, or cast
    integers. Tells `stored` for every operation whether its results are half."""

    def __init__(self, noticed: Noticed, stored: Stored = lambda op, half: None) -> None:
        super().__init__()
        self._noticed, self._stored = noticed, stored

    def operation(self, call: Call) -> Any:
        op, result = call.op, call()
        if made := floats_in(result):
            self._stored(op, all(tensor.dtype in HALVES for tensor in made))
        if isinstance(result, torch.Tensor) and result.dtype in HALVES and result.numel() > 1 and not in_transform():
            wanted = _distinct_values(op, call.args, result)
            if wanted is not None and result.unique().numel() < wanted:
                self._noticed(op, result, wanted)
        return result


def _distinct_values(op: str, args: Any, result: torch.Tensor) -> int | None:
    source = args[0] if args else None
    if op in _MAKERS:
        return result.numel()
    if op.endswith("_like") or op.startswith("new_"):  # the source has no values in it
        return None
    if not isinstance(source, torch.Tensor) or source.shape != result.shape:
        return None
    whole = source.dtype in _WIDE_INTEGERS or (op in CASTS and integer_amax([source.detach()]) is not None)
    return source.unique().numel() if whole else None


class AliasingWatch:
    """Records aliased values and half results inside models' forward passes, by module and operation."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str, str], AliasedValues] = {}
        self._stored: dict[HalfResult, bool] = {}

    @property
    def half_results(self) -> frozenset[HalfResult]:
        return frozenset(key for key, half in self._stored.items() if half)

    def entered(self, frame: Frame, current: Callable[[], Frame | None], format_name: str) -> None:
        """Observe the forward pass of an outermost module, inside the modes that run it in the format."""

        def noticed(op: str, result: torch.Tensor, wanted: int) -> None:
            name = (current() or frame).name
            key = (name.model, name.fqn, op, format_name)
            if key not in self.found:
                kept, amax = result.unique().numel(), float(result.abs().max())
                self.found[key] = AliasedValues(*key, amax, wanted, kept, caller_location())

        def stored(op: str, half: bool) -> None:
            name = (current() or frame).name
            key = (name.model, name.fqn, op, caller_location())
            self._stored[key] = half and self._stored.get(key, True)

        frame.data["aliased"] = stack = ExitStack()
        stack.enter_context(AliasingMode(noticed, stored))

    def left(self, frame: Frame) -> None:
        frame.data.pop("aliased").close()
