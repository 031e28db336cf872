"""Gradients that a script accumulates in half: over several backward passes in a parameter's `.grad`, and over many
lookups of one row. Each sum is also computed in float32, for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from precaudit.execution.rounding import HALVES
from precaudit.instrument.names import ModuleNames
from precaudit.instrument.torch_function import Call, dtype_name, energy, tensors_in
from precaudit.ownprecision.records import Entry, GradientSumLoss, RowSumLoss, SumLoss
from precaudit.tracing.ops import caller_location

_READS_ROWS = frozenset("embedding index_select __getitem__".split())

Arrived = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Called with a low parameter's name, the parameter, and a gradient that reaches it."""


@dataclass
class _Sum:
    """The float32 sum of a parameter's gradients, and its `.grad` just after the last addition: the script may clip
    that, or move it to a master copy, before the step."""

    exact: torch.Tensor
    stored: torch.Tensor | None = None


class OwnSums:
    """Observes every operation with a low-precision result, and the starts of backward passes and steps."""

    def __init__(self, names: ModuleNames, module_of: Callable[[torch.Tensor], str], arrived: Arrived) -> None:
        self._names, self._module_of, self._arrived = names, module_of, arrived
        self._sums: dict[int, _Sum] = {}
        self._hooked: set[int] = set()
        self._lost: dict[SumLoss, float] = {}

    def entries(self) -> list[Entry]:
        """One entry for each line and module, with the largest share that one of its sums has lost."""
        return [replace(entry, lost=lost) for entry, lost in self._lost.items()]

    def _note(self, entry: SumLoss) -> None:
        if math.isfinite(entry.lost):
            key = replace(entry, lost=0.0)
            self._lost[key] = max(self._lost.get(key, 0.0), entry.lost)

    # ---------------------------------------------------------------- rows

    def made(self, call: Call, result: torch.Tensor) -> None:
        if call.op not in _READS_ROWS or not result.requires_grad:
            return
        table, index = _table_and_index(call.op, call.args)
        if table is None or index is None or not table.requires_grad or table.dtype not in HALVES:
            return
        place, fqn = caller_location(), self._module_of(table)

        def summed(gradients: Sequence[torch.Tensor | None], results: Sequence[torch.Tensor | None]) -> None:
            gradient, given = gradients[0], results[0]
            if gradient is not None and given is not None and gradient.shape == table.shape:
                lost = _lost_in_rows(table, index, gradient, given)
                self._note(RowSumLoss(place, fqn, dtype_name(table.dtype), lost, call.op))

        # At this lookup's own graph node: the table's gradient also sums other uses, such as a tied output layer.
        if result.grad_fn is not None:
            result.grad_fn.register_hook(summed)

    # ---------------------------------------------------------------- backward passes

    def backward_starts(self) -> None:
        for model in self._names.models.values():
            for fqn, parameter in model.named_parameters():
                if parameter.dtype in HALVES and parameter.requires_grad:
                    self._follow(fqn, parameter)

    def _follow(self, fqn: str, parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            self._sums.pop(id(parameter), None)
        if id(parameter) in self._hooked:
            return
        self._hooked.add(id(parameter))

        def add(gradient: torch.Tensor) -> None:
            value = gradient.detach().float().to_dense()
            self._arrived(fqn, parameter, value)
            known = self._sums.get(id(parameter))
            self._sums[id(parameter)] = _Sum(value if known is None else known.exact + value)

        def added(parameter: torch.Tensor) -> None:
            known = self._sums.get(id(parameter))
            if known is not None and parameter.grad is not None and not parameter.grad.is_sparse:
                known.stored = parameter.grad.detach().clone()

        parameter.register_hook(add)
        parameter.register_post_accumulate_grad_hook(added)

    def gradients_ready(self) -> None:
        for model in self._names.models.values():
            for parameter in model.parameters():
                known = self._sums.get(id(parameter))
                if known is None or known.stored is None or not (whole := energy(known.exact)):
                    continue
                lost = energy(known.stored.float() - known.exact) / whole
                self._note(GradientSumLoss(None, self._module_of(parameter), dtype_name(parameter.dtype), lost))
        self._sums.clear()


def _lost_in_rows(table: torch.Tensor, index: torch.Tensor, gradient: torch.Tensor, given: torch.Tensor) -> float:
    """The share of a table's gradient that its sums have lost. Rows without any gradient are padding."""
    gradient, exact = gradient.to_dense().float(), _sum_of_rows(table, index, given)
    exact *= (gradient != 0).flatten(1).any(1).reshape(-1, *[1] * (table.dim() - 1))
    whole = energy(exact)
    return energy(gradient - exact) / whole if whole else 0.0


def _sum_of_rows(table: torch.Tensor, index: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradients of a table's rows, summed in float32 from the gradients of the lookup's results."""
    rows = gradient.detach().float().reshape(-1, *table.shape[1:])
    total = torch.zeros(table.shape, dtype=rows.dtype, device=rows.device)
    return total.index_add_(0, index.reshape(-1).remainder(len(table)), rows)


def _table_and_index(op: str, args: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The table and the index into its first dimension, whichever comes first in the call."""
    plain = len(args) >= 2 and all(isinstance(arg, torch.Tensor) for arg in args[:2])
    rows = plain or (op == "index_select" and len(args) == 3 and args[1] == 0)
    tensors = tensors_in(args) if rows else []
    table = next((t for t in tensors if t.is_floating_point() and t.dim() > 1), None)
    index = next((t for t in tensors if t.dtype in (torch.int64, torch.int32)), None)
    return table, index
