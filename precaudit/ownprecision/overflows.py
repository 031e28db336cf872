"""Operations that produce non-finite values in a low format and finite ones in float32."""

from __future__ import annotations

import torch

from precaudit.execution.emulated import in_float32
from precaudit.execution.rounding import HALVES
from precaudit.instrument.torch_function import Call
from precaudit.ownprecision.state import is_plain
from precaudit.tracing.faults import MASKING
from precaudit.tracing.shadow import UNREPEATABLE, unobserved

UNINITIALIZED = frozenset(
    "empty empty_like new_empty empty_strided new_empty_strided empty_permuted resize resize_as".split()
)
"""Operations whose results hold no values yet. Reading them would cost the memory that a large buffer may never use."""


def overwritten(call: Call) -> torch.Tensor | None:
    """A copy of the low tensor that an operation is about to change in place, needed to tell whether the operation
    caused a non-finite result; None where the result doesn't depend on the old value."""
    target = call.args[0] if call.args else None
    if call.op == "copy" or call.op in MASKING or call.kwargs.get("out") is not None or not call.writes:
        return None
    if not isinstance(target, torch.Tensor) or target.dtype not in HALVES or not is_plain(target):
        return None
    return target.detach().clone()


def overflow(call: Call, result: torch.Tensor, before: torch.Tensor | None) -> float | None:
    """The largest input of an operation whose low result is not finite though its inputs are; None where it isn't in
    float32 either, as the logarithm of zero. `before` is the value it has overwritten."""
    if call.op in MASKING:
        return None
    args = tuple(before if value is result and call.writes else value for value in call.args)
    call = call.without_out._replace(args=args)
    tensors = [t for t in call.given if t.dtype != torch.bool]
    inputs = [t for t in tensors if t.is_floating_point()] or tensors
    if not all(bool(t.isfinite().all()) for t in inputs) or _not_finite_either(call, result):
        return None
    return max((float(t.abs().max()) for t in inputs if t.numel()), default=0.0)


def _not_finite_either(call: Call, result: torch.Tensor) -> bool:
    """Whether float32 has non-finite values there too; False for operations that can't be repeated in it."""
    if call.op in UNREPEATABLE or call.op == "copy":
        return False
    try:
        with unobserved():
            exact = in_float32(call)
    except (RuntimeError, TypeError, ValueError):
        return False
    if not isinstance(exact, torch.Tensor) or exact.shape != result.shape:
        return False
    return not bool((exact.isfinite() & ~result.isfinite()).any())
