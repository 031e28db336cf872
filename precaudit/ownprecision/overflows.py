"""Operations that produce non-finite values in a low format and finite ones in float32."""

from __future__ import annotations

from typing import Any

import torch

from precaudit.execution.emulated import in_float32
from precaudit.execution.rounding import HALVES
from precaudit.instrument.torchfunction import tensors_in, writes
from precaudit.ownprecision.state import is_plain
from precaudit.tracing.faults import MASKING
from precaudit.tracing.shadow import UNREPEATABLE, without_autocast

_EMPTY = frozenset("empty empty_like new_empty empty_strided new_empty_strided resize resize_as".split())
MEANT = MASKING | _EMPTY


def overwritten(op: str, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
    """A copy of the low tensor that an operation is about to change in place, needed to tell whether the operation
    caused a non-finite result; None where the result doesn't depend on the old value."""
    target = args[0] if args else None
    if op == "copy" or op in MEANT or kwargs.get("out") is not None or not writes(func, kwargs):
        return None
    if not isinstance(target, torch.Tensor) or target.dtype not in HALVES or not is_plain(target):
        return None
    return target.detach().clone()


def overflow(
    op: str, func: Any, args: Any, kwargs: Any, result: torch.Tensor, before: torch.Tensor | None
) -> float | None:
    """The largest input of an operation that produces non-finite low values from finite ones; None where it produces
    none, or also in float32, as the logarithm of zero does. `before` is the value it has overwritten."""
    if op in MEANT or bool(result.isfinite().all()):
        return None
    given = [before if value is result else value for value in args]
    options = {name: value for name, value in kwargs.items() if name != "out"}
    tensors = [t for t in tensors_in((given, options)) if t.dtype != torch.bool]
    inputs = [t for t in tensors if t.is_floating_point()] or tensors
    if not all(bool(t.isfinite().all()) for t in inputs) or _not_finite_either(op, func, given, options, result):
        return None
    return max((float(t.abs().max()) for t in inputs if t.numel()), default=0.0)


def _not_finite_either(op: str, func: Any, args: Any, kwargs: Any, result: torch.Tensor) -> bool:
    """Whether float32 has non-finite values there too; False for operations that can't be repeated in it."""
    if op in UNREPEATABLE or op == "copy":
        return False
    try:
        with torch._C.DisableTorchFunction(), without_autocast():
            exact = in_float32(op, func, args, kwargs)
    except (RuntimeError, TypeError, ValueError):
        return False
    if not isinstance(exact, torch.Tensor) or exact.shape != result.shape:
        return False
    return not bool((exact.isfinite() & ~result.isfinite()).any())
